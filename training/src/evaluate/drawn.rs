//! Masks that people drew, as files: which pixels are objects, which are none, and which are left out.
//!
//! - **Palettes** are read by index: 0 is background, 255 void, each other index an object. A palette of greys that begins with
//!   black is read as grey. Where black stands elsewhere in the palette, or it has only greys and none of them is first black,
//!   index and colour contradict each other, and the mask is refused.
//! - **Grey** with values between half and white, or of black and white alone, is cut at half: masks with soft edges, and what
//!   JPEG left of one. Other grey values are numbers: 0 is background, 255 void, each other an object. Where white covers more
//!   than the numbers do, it may be either, and the mask is refused. Greys of 16 bits that are none of 8 are numbers.
//! - **Colours**: black is background, VOC's (224, 224, 192) void, each other an object.
//! - **JPEG** keeps neither numbers nor colours: a pixel is of an object where its brightest channel is at least half.
//! - What is less than half opaque is background.
//!
//! Files are PNG or JPEG, whatever their names, and are turned as their orientation says. [`Folder`] has the rule for masks of which all
//! have to be read alike.
//!
//! ```
//! use dino_train::evaluate::drawn::read;
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("mask.png");
//! image::GrayImage::from_raw(3, 1, vec![0, 255, 255]).unwrap().save(&path)?;
//! let truth = read(&path, (3, 1))?;
//! assert_eq!((truth.pixels, truth.boxes), (vec![false, true, true], vec![[1, 0, 2, 1]]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod file;
mod greys;
mod sixteen;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use dino_vision::bulk;
use dino_vision::media::{self, Format, Limits};
use image::{DynamicImage, Luma, LumaA, Rgb};

use super::segmentation::{Truth, bounds};
pub use file::{Stored, stored};
pub use greys::{Counts, Folder, Greys};

/// From here on a grey pixel of a mask belongs to an object, and an opaque one to the mask.
pub const HALF: u8 = 128;
/// What PASCAL VOC paints around objects whose border is not known.
const VOID: [u8; 3] = [224, 224, 192];
/// The number of such pixels in grey and in palettes.
const VOID_NUMBER: u8 = 255;
/// Most objects of one mask: more are the colours of soft edges.
const MOST_OBJECTS: usize = 255;
/// Why a mask with more white than numbers is refused.
const WHITE_OR_VOID: &str =
    "it is white where it is not darker than half grey: white may be an object with an edge, or what is left out (255)";

/// What a pixel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pixel {
    Background,
    Void,
    /// Of the object with this number, which may be a colour.
    Object(u32),
}

/// Reads the mask of a picture of `size` (width, height).
///
/// # Errors
/// Where the file is no picture of this size, or its values can be read in two ways.
pub fn read(path: &Path, size: (u32, u32)) -> anyhow::Result<Truth> {
    let read = || -> anyhow::Result<Truth> {
        let bytes = bulk::read(path)?;
        let found = media::dimensions(&bytes, &Limits::default())?;
        ensure!(found == size, "the mask is of {found:?}, its picture of {size:?} pixels");
        truth(&pixels(&bytes)?, size.0)
    };
    read().with_context(|| path.display().to_string())
}

fn pixels(bytes: &[u8]) -> anyhow::Result<Vec<Pixel>> {
    match Format::sniff(bytes)? {
        Format::Png => match file::indexed(bytes)? {
            Some(Stored { palette: Some(palette), values, .. }) => of_palette(&palette, &values),
            _ => of_values(file::decoded(bytes)?),
        },
        Format::Jpeg => {
            let picture = media::decode(bytes, &Limits::default())?;
            Ok(picture.pixels().map(|pixel| cut(pixel.0.into_iter().max().unwrap_or(0))).collect())
        }
        other => bail!("the mask is a {other} file, whose numbers and transparency are not read: save it as PNG"),
    }
}

fn of_palette(palette: &[[u8; 4]], indices: &[u8]) -> anyhow::Result<Vec<Pixel>> {
    let mut used = [false; 256];
    for index in indices {
        used[usize::from(*index)] = true;
    }
    let used: Vec<usize> = (0..256).filter(|index| used[*index]).collect();
    let colour = |index: usize| palette.get(index).copied().unwrap_or([0, 0, 0, 255]);
    let first_is_black = colour(0)[..3] == [0; 3];
    if used.iter().all(|index| is_grey(colour(*index))) && palette.len() > 1 {
        ensure!(
            first_is_black || colour(0)[3] < HALF,
            "its palette has only greys and does not begin with black, so that index and brightness may mean opposite things: save it as grey"
        );
        let values: Vec<[u8; 4]> = indices.iter().map(|index| colour(usize::from(*index))).collect();
        return of_colours(&values);
    }
    ensure!(
        first_is_black || !used.iter().any(|index| *index > 0 && colour(*index) == [0, 0, 0, 255]),
        "its palette has black, but not as its first colour, so that index and colour may mean opposite things: save it as RGB"
    );
    let pixel = |index: u8| match (index, colour(usize::from(index))) {
        (0, _) => Pixel::Background,
        (_, [.., alpha]) if alpha < HALF => Pixel::Background,
        (VOID_NUMBER, _) => Pixel::Void,
        (_, [r, g, b, _]) if [r, g, b] == VOID => Pixel::Void,
        (number, _) => Pixel::Object(number.into()),
    };
    Ok(indices.iter().map(|index| pixel(*index)).collect())
}

fn of_values(picture: DynamicImage) -> anyhow::Result<Vec<Pixel>> {
    // What has 16 bits would be lost in 8.
    let wide: Vec<[u16; 4]> = match picture {
        DynamicImage::ImageLuma16(picture) => picture.pixels().map(|&Luma([grey])| [grey, grey, grey, u16::MAX]).collect(),
        DynamicImage::ImageLumaA16(picture) => picture.pixels().map(|&LumaA([grey, alpha])| [grey, grey, grey, alpha]).collect(),
        DynamicImage::ImageRgb16(picture) => picture.pixels().map(|&Rgb([r, g, b])| [r, g, b, u16::MAX]).collect(),
        DynamicImage::ImageRgba16(picture) => picture.pixels().map(|pixel| pixel.0).collect(),
        narrow => return of_colours(narrow.into_rgba8().as_raw().as_chunks::<4>().0),
    };
    sixteen::pixels(&wide)
}

fn of_colours(pixels: &[[u8; 4]]) -> anyhow::Result<Vec<Pixel>> {
    let opaque = || pixels.iter().filter(|pixel| pixel[3] >= HALF);
    if opaque().all(|pixel| is_grey(*pixel)) {
        let is_number = is_number(pixels)?;
        let pixel = |[value, _, _, alpha]: [u8; 4]| match (alpha >= HALF, is_number) {
            (false, _) => Pixel::Background,
            (true, true) => number(value.into()),
            (true, false) => cut(value),
        };
        return Ok(pixels.iter().map(|values| pixel(*values)).collect());
    }
    let pixel = |[r, g, b, alpha]: [u8; 4]| match [r, g, b] {
        _ if alpha < HALF => Pixel::Background,
        [0, 0, 0] => Pixel::Background,
        VOID => Pixel::Void,
        [r, g, b] => Pixel::Object(u32::from_be_bytes([0, r, g, b])),
    };
    Ok(pixels.iter().map(|values| pixel(*values)).collect())
}

fn is_grey([r, g, b, _]: [u8; 4]) -> bool {
    r == g && g == b
}

/// Whether grey values are numbers rather than brightness.
fn is_number(pixels: &[[u8; 4]]) -> anyhow::Result<bool> {
    let opaque = pixels.iter().filter(|pixel| pixel[3] >= HALF);
    let counts = Counts::of(opaque.map(|pixel| pixel[0]));
    let is_cut_out = pixels.iter().any(|pixel| pixel[3] < HALF);
    ensure!(
        !is_cut_out || counts.within(1..VOID_NUMBER) + counts.white() > 0 || counts.within(0..1) == 0,
        "what is opaque in it is black, so that transparency and brightness mean opposite things: save it in white on black"
    );
    counts.meaning().map(|greys| greys == Greys::Numbers).ok_or_else(|| anyhow!(WHITE_OR_VOID))
}

fn number(value: u32) -> Pixel {
    match value {
        0 => Pixel::Background,
        _ if value == u32::from(VOID_NUMBER) => Pixel::Void,
        number => Pixel::Object(number),
    }
}

fn cut(value: u8) -> Pixel {
    if value < HALF { Pixel::Background } else { Pixel::Object(VOID_NUMBER.into()) }
}

fn truth(pixels: &[Pixel], width: u32) -> anyhow::Result<Truth> {
    let mut objects: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
    for (at, pixel) in pixels.iter().enumerate() {
        if let Pixel::Object(number) = pixel {
            ensure!(
                objects.len() < MOST_OBJECTS || objects.contains_key(number),
                "a mask has one colour per object, this one has hundreds: draw it without soft edges, or in white on black"
            );
            objects.entry(*number).or_insert_with(|| vec![false; pixels.len()])[at] = true;
        }
    }
    ensure!(pixels.iter().any(|pixel| *pixel != Pixel::Void), "all of it is void");
    Ok(Truth {
        pixels: pixels.iter().map(|pixel| matches!(pixel, Pixel::Object(_))).collect(),
        void: pixels.iter().map(|pixel| *pixel == Pixel::Void).collect(),
        boxes: objects.values().map(|object| bounds(object, width as usize)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::PathBuf;

    use image::{GrayImage, ImageBuffer, RgbImage, Rgba, RgbaImage, imageops};
    use tempfile::TempDir;

    use super::*;

    const SIZE: (u32, u32) = (240, 160);

    fn inside(x: f32, y: f32) -> bool {
        (x - 120.0).hypot(y - 80.0) < 40.0
    }

    fn disc(value: u8) -> GrayImage {
        GrayImage::from_fn(SIZE.0, SIZE.1, |x, y| Luma([if inside(x as f32 + 0.5, y as f32 + 0.5) { value } else { 0 }]))
    }

    /// Drawn eight times as large, and reduced.
    fn soft() -> GrayImage {
        let large = GrayImage::from_fn(8 * SIZE.0, 8 * SIZE.1, |x, y| {
            Luma([if inside(x as f32 / 8.0 + 0.0625, y as f32 / 8.0 + 0.0625) { 255 } else { 0 }])
        });
        imageops::thumbnail(&large, SIZE.0, SIZE.1)
    }

    /// Numbers of the disc (1) and of the ring around it (255).
    fn ringed() -> Vec<u8> {
        let number = |x: u32, y: u32| match (x as f32 - 119.5).hypot(y as f32 - 79.5) {
            ..38.0 => 1,
            ..42.0 => 255,
            _ => 0,
        };
        (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| number(x, y))).collect()
    }

    fn png(depth: png::BitDepth, colour: png::ColorType, palette: Option<&[[u8; 3]]>, data: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, SIZE.0, SIZE.1);
        encoder.set_depth(depth);
        encoder.set_color(colour);
        if let Some(palette) = palette {
            encoder.set_palette(palette.concat());
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        file
    }

    fn palette(first: [u8; 3], second: [u8; 3]) -> Vec<[u8; 3]> {
        let mut palette = vec![[7, 8, 9]; 256];
        (palette[0], palette[1], palette[255]) = (first, second, VOID);
        palette
    }

    fn file(folder: &TempDir, bytes: Vec<u8>) -> PathBuf {
        let path = folder.path().join("mask.png");
        fs_err::write(&path, bytes).unwrap();
        path
    }

    fn of_picture(folder: &TempDir, picture: &DynamicImage, format: image::ImageFormat) -> anyhow::Result<Truth> {
        let mut bytes = Vec::new();
        picture.write_to(&mut Cursor::new(&mut bytes), format)?;
        read(&file(folder, bytes), SIZE)
    }

    #[test]
    fn one_disc_is_one_object_in_every_form() {
        let folder = tempfile::tempdir().unwrap();
        let png_of = |picture: DynamicImage| of_picture(&folder, &picture, image::ImageFormat::Png).unwrap();
        let hard = png_of(disc(255).into());
        assert_eq!((hard.boxes.as_slice(), hard.void.contains(&true)), ([[80, 40, 80, 80]].as_slice(), false));
        let soft = soft();
        let shades: std::collections::BTreeSet<u8> = soft.pixels().map(|pixel| pixel.0[0]).collect();
        assert!(shades.len() > 20, "{} shades", shades.len());
        let black_and_white: Vec<u8> = disc(1).as_raw().chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | bit)).collect();
        let sixteen = |value: u16| {
            let grey = disc(1);
            ImageBuffer::<Luma<u16>, _>::from_fn(SIZE.0, SIZE.1, |x, y| Luma([u16::from(grey.get_pixel(x, y).0[0]) * value]))
        };
        let clear = RgbaImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgba(if disc_at(x, y) { [255; 4] } else { [255, 255, 255, 0] }));
        let red = RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgb(if disc_at(x, y) { [128, 0, 0] } else { [0; 3] }));
        let forms = [
            ("soft", png_of(soft.clone().into())),
            ("JPEG", of_picture(&folder, &soft.clone().into(), image::ImageFormat::Jpeg).unwrap()),
            ("JPEG of colours", of_picture(&folder, &DynamicImage::from(soft).into_rgb8().into(), image::ImageFormat::Jpeg).unwrap()),
            ("numbers", png_of(disc(1).into())),
            ("one bit", read(&file(&folder, png(png::BitDepth::One, png::ColorType::Grayscale, None, &black_and_white)), SIZE).unwrap()),
            ("white of 16 bits", png_of(DynamicImage::ImageLuma16(sixteen(65_535)))),
            ("numbers of 16 bits", png_of(DynamicImage::ImageLuma16(sixteen(3)))),
            ("transparent ground", png_of(clear.into())),
            ("a colour", png_of(red.into())),
            ("a palette that does not begin with black", {
                let colours = palette([200, 220, 240], [255, 0, 0]);
                read(&file(&folder, png(png::BitDepth::Eight, png::ColorType::Indexed, Some(&colours), disc(1).as_raw())), SIZE).unwrap()
            }),
            ("a palette of two", {
                let colours = [[0; 3], [255; 3]];
                read(&file(&folder, png(png::BitDepth::One, png::ColorType::Indexed, Some(&colours), &black_and_white)), SIZE).unwrap()
            }),
        ];
        for (name, truth) in forms {
            assert_eq!(truth.boxes.len(), 1, "{name}");
            let differ = truth.pixels.iter().zip(&hard.pixels).filter(|(a, b)| a != b).count();
            let area = hard.pixels.iter().filter(|inside| **inside).count();
            assert!(differ * 100 < area, "{name}: {differ} of {area}");
        }
    }

    fn disc_at(x: u32, y: u32) -> bool {
        inside(x as f32 + 0.5, y as f32 + 0.5)
    }

    #[test]
    fn rings_of_void_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let ring = ringed().iter().map(|number| *number == 255).collect::<Vec<_>>();
        let colours = palette([0; 3], [128, 0, 0]);
        let numbers = GrayImage::from_raw(SIZE.0, SIZE.1, ringed()).unwrap();
        let rgb = RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgb(colours[usize::from(numbers.get_pixel(x, y).0[0])]));
        let of_palette = read(&file(&folder, png(png::BitDepth::Eight, png::ColorType::Indexed, Some(&colours), &ringed())), SIZE).unwrap();
        let of_rgb = of_picture(&folder, &rgb.into(), image::ImageFormat::Png).unwrap();
        let of_grey = of_picture(&folder, &numbers.into(), image::ImageFormat::Png).unwrap();
        for truth in [of_palette, of_rgb, of_grey] {
            assert_eq!((truth.boxes.len(), &truth.void), (1, &ring));
            assert!(truth.pixels.iter().zip(&ring).all(|(object, void)| !(*object && *void)));
        }
    }

    #[test]
    fn what_may_be_read_in_two_ways_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |bytes: Vec<u8>, word: &str| {
            let error = format!("{:#}", read(&file(&folder, bytes), SIZE).unwrap_err());
            assert!(error.contains("mask.png") && error.contains(word), "{error}");
        };
        let indexed = |colours: &[[u8; 3]]| png(png::BitDepth::Eight, png::ColorType::Indexed, Some(colours), disc(1).as_raw());
        refused(indexed(&[[255; 3], [0; 3]]), "only greys");
        refused(indexed(&[[255, 0, 0], [0; 3]]), "not as its first colour");
        let edge: Vec<u8> = disc(255).as_raw().iter().zip(soft().as_raw()).map(|(hard, soft)| *hard.max(&(soft / 3))).collect();
        refused(png(png::BitDepth::Eight, png::ColorType::Grayscale, None, &edge), "white may be");
        let black: Vec<u8> = disc(255).as_raw().iter().flat_map(|alpha| [0, *alpha]).collect();
        refused(png(png::BitDepth::Eight, png::ColorType::GrayscaleAlpha, None, &black), "opaque in it is black");
        let shaded: Vec<u8> = (0..SIZE.0 * SIZE.1).flat_map(|at| [(at % 251) as u8, 30, 90]).collect();
        let many: Vec<u8> = (0..SIZE.0 * SIZE.1).flat_map(|at| [(at % 251) as u8, (at / 251) as u8, 90]).collect();
        assert!(read(&file(&folder, png(png::BitDepth::Eight, png::ColorType::Rgb, None, &shaded)), SIZE).is_ok());
        refused(png(png::BitDepth::Eight, png::ColorType::Rgb, None, &many), "hundreds");
        refused(b"no picture".to_vec(), "");
        assert!(read(&file(&folder, png(png::BitDepth::Eight, png::ColorType::Grayscale, None, &edge)), (3, 3)).is_err());
    }
    #[test]
    fn other_formats_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let clear = RgbaImage::from_fn(SIZE.0, SIZE.1, |x, y| Rgba(if disc_at(x, y) { [255; 4] } else { [255, 255, 255, 0] }));
        for (format, name) in [
            (image::ImageFormat::WebP, "WebP"),
            (image::ImageFormat::Gif, "GIF"),
            (image::ImageFormat::Tiff, "TIFF"),
            (image::ImageFormat::Bmp, "BMP"),
        ] {
            let error = format!("{:#}", of_picture(&folder, &clear.clone().into(), format).unwrap_err());
            assert!(error.contains("mask.png") && error.contains(name) && error.contains("save it as PNG"), "{error}");
        }
    }
}
