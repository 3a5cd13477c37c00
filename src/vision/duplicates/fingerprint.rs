//! What is kept of a picture's pixels, to know its copies by.

use std::sync::LazyLock;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

/// Side of the small picture that the hash is made of.
const SIDE: usize = 64;
/// Frequencies along each axis that are kept, without the constant one.
const FREQUENCIES: usize = 16;
/// Parts along each axis whose colours are kept.
const PARTS: usize = 4;
/// Numbers of the parts' colours.
const COLOURS: usize = PARTS * PARTS * 3;
/// Bits of the hash.
pub(super) const BITS: usize = FREQUENCIES * FREQUENCIES;

/// Measured on 253 photographs, as JPEG of quality 30 and 60, as WebP of quality 50, at a half, a third and at 96 pixels: 99 % of the
/// copies differ in at most 13 bits, all in at most 18. Neighbouring frames of three videos differ in at least 22.
pub(super) const MOST_BITS: u32 = Fingerprint::MOST_BITS;
/// Largest difference of two parts' colours, of 255. The same copies differ by at most 8; different pictures whose hashes are near (a
/// drawing in other colours, an object before another background) by at least 16.
const MOST_COLOUR: u8 = 12;
/// Least information of a picture whose hash means something: PDQ calls half of its largest quality unusable. Photographs have at least
/// twice as much, a white page or a black frame has none.
const LEAST_GRADIENT: f32 = 0.5;
/// What the sum of gradients is divided by, as in PDQ.
const GRADIENTS: f32 = 90.0;

/// First byte of the stored form. What another version made is not compared.
const VERSION: u8 = 1;
/// Bytes of the stored form.
const STORED: usize = 1 + BITS / 8 + COLOURS + 8;

/// The pixels of a picture in 88 bytes: the same for its copies, whatever their format, quality and size.
///
/// The hash is that of PDQ (<https://github.com/facebook/ThreatExchange/tree/main/pdq>), but for the filter that makes the picture small:
/// luminance at 64 x 64 pixels, the 16 x 16 lowest frequencies of its cosine transform, and of each whether it is above the median.
/// Beside it are the mean colours of 4 x 4 parts, which tell pictures of one shape in other colours apart, and the size.
///
/// Turned and mirrored copies have other fingerprints, and so have crops. What differs in less than about a sixteenth of each side is not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// All zeros for a flat picture; else half of the bits are set.
    hash: [u64; BITS / 64],
    colours: [u8; COLOURS],
    width: u32,
    height: u32,
}

impl Fingerprint {
    /// Most bits in which the hashes of copies differ, of 256.
    pub const MOST_BITS: u32 = 20;

    /// That of a picture.
    pub fn of(picture: &RgbImage) -> Self {
        let small = shrunk(picture);
        let luminance = luminance(&small);
        let hash = if gradient(&luminance) < LEAST_GRADIENT { [0; BITS / 64] } else { hash(&luminance) };
        Self { hash, colours: colours(&small), width: picture.width(), height: picture.height() }
    }

    /// Whether there is too little in the picture to know it again.
    pub fn is_flat(&self) -> bool {
        self.hash == [0; BITS / 64]
    }

    /// Width and height of the picture.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Number of pixels of the picture.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Whether the pictures have the same pixels, but for their size and what encoding changes.
    pub fn is_copy(&self, other: &Self) -> bool {
        !self.is_flat() && !other.is_flat() && self.distance(other) <= MOST_BITS && self.has_colours_of(other)
    }

    /// Bits in which the hashes differ, of 256.
    pub(super) fn distance(&self, other: &Self) -> u32 {
        self.hash.iter().zip(other.hash).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    pub(super) fn bit(&self, number: usize) -> bool {
        self.hash[number / 64] >> (number % 64) & 1 == 1
    }

    fn has_colours_of(&self, other: &Self) -> bool {
        self.colours.iter().zip(&other.colours).all(|(a, b)| a.abs_diff(*b) <= MOST_COLOUR)
    }

    /// The form in which it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STORED);
        bytes.push(VERSION);
        bytes.extend(self.hash.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(self.colours);
        bytes.extend(self.width.to_le_bytes());
        bytes.extend(self.height.to_le_bytes());
        bytes
    }

    /// The fingerprint whose stored form this is; `None` for what is none, or that of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&version, bytes) = bytes.split_first()?;
        let (hash, bytes) = bytes.split_at_checked(BITS / 8)?;
        let (colours, sides) = bytes.split_at_checked(COLOURS)?;
        let ([width, height], []) = sides.as_chunks::<4>() else { return None };
        let ([a, b, c, d], []) = hash.as_chunks::<8>() else { return None };
        let hash = [a, b, c, d].map(|word| u64::from_le_bytes(*word));
        let [width, height] = [width, height].map(|side| u32::from_le_bytes(*side));
        (version == VERSION).then_some(Self { hash, colours: colours.try_into().ok()?, width, height })
    }
}

/// The picture at 64 x 64 pixels, whatever its shape.
fn shrunk(picture: &RgbImage) -> RgbImage {
    const WHY: &str = "buffers have the size of their pictures";
    let source = TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.as_raw()).expect(WHY);
    let mut small = RgbImage::new(SIDE as u32, SIDE as u32);
    let mut target = TypedImage::<U8x3>::from_buffer(SIDE as u32, SIDE as u32, small.as_mut()).expect(WHY);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize_typed(&source, &mut target, &options).expect(WHY);
    small
}

type Plane = [[f32; SIDE]; SIDE];

fn luminance(small: &RgbImage) -> Box<Plane> {
    let mut plane = Box::new([[0.0; SIDE]; SIDE]);
    for (x, y, pixel) in small.enumerate_pixels() {
        let [red, green, blue] = pixel.0.map(f32::from);
        plane[y as usize][x as usize] = 0.299 * red + 0.587 * green + 0.114 * blue;
    }
    plane
}

/// How much there is in a picture: 1 for the least that PDQ calls good.
fn gradient(plane: &Plane) -> f32 {
    let down = plane.windows(2).flat_map(|rows| rows[0].iter().zip(&rows[1])).map(|(a, b)| (a - b).abs()).sum::<f32>();
    let across = plane.iter().flat_map(|row| row.windows(2)).map(|two| (two[0] - two[1]).abs()).sum::<f32>();
    (down + across) / 255.0 / GRADIENTS
}

/// Rows 1 to 16 of the cosine transform of 64 values.
static COSINES: LazyLock<Box<[[f32; SIDE]; FREQUENCIES]>> = LazyLock::new(|| {
    let mut rows = Box::new([[0.0; SIDE]; FREQUENCIES]);
    for (frequency, row) in (1..).zip(rows.iter_mut()) {
        for (at, value) in row.iter_mut().enumerate() {
            let angle = std::f64::consts::PI * f64::from(frequency) * (2 * at + 1) as f64 / (2 * SIDE) as f64;
            *value = angle.cos() as f32;
        }
    }
    rows
});

fn hash(plane: &Plane) -> [u64; BITS / 64] {
    let product = |a: &[f32; SIDE], b: &[f32; SIDE]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    // Each row of the picture in frequencies across it.
    let across: Vec<[f32; SIDE]> = COSINES.iter().map(|wave| std::array::from_fn(|row| product(&plane[row], wave))).collect();
    let mut values = [0.0; BITS];
    for (number, value) in values.iter_mut().enumerate() {
        *value = product(&across[number % FREQUENCIES], &COSINES[number / FREQUENCIES]);
    }
    let mut sorted = values;
    let (_, median, _) = sorted.select_nth_unstable_by(BITS / 2 - 1, f32::total_cmp);
    let mut hash = [0; BITS / 64];
    for (number, _) in values.iter().enumerate().filter(|(_, value)| **value > *median) {
        hash[number / 64] |= 1 << (number % 64);
    }
    hash
}

fn colours(small: &RgbImage) -> [u8; COLOURS] {
    const PART: usize = SIDE / PARTS;
    let mut sums = [0_u32; COLOURS];
    for (x, y, pixel) in small.enumerate_pixels() {
        let part = (y as usize / PART) * PARTS + x as usize / PART;
        sums[part * 3..][..3].iter_mut().zip(pixel.0).for_each(|(sum, value)| *sum += u32::from(value));
    }
    let count = (PART * PART) as u32;
    sums.map(|sum| ((sum + count / 2) / count) as u8)
}
