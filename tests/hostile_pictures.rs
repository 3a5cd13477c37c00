//! Cut, damaged and oversized pictures, and those that say how they want to be turned.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dino_vision::media::{self, DecodeError, Format, Limits};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn read(name: &str) -> Vec<u8> {
    fs_err::read(tests().join(name)).unwrap()
}

fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    media::decode(bytes, &Limits::default())
}

/// Time that this thread has computed so far, which other work on the machine does not change.
fn computed() -> Duration {
    let stat = fs_err::read_to_string("/proc/thread-self/stat").unwrap();
    // After the name in brackets: utime and stime are the fields 14 and 15, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Duration::from_millis(fields[11..13].iter().map(|ticks| 10 * ticks.parse::<u64>().unwrap()).sum())
}

fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

/// One whole file of each kind.
fn whole_files() -> Vec<(&'static str, Vec<u8>)> {
    [
        "photos/odd/photo.bmp",
        "photos/odd/photo.tiff",
        "photos/odd/photo.webp",
        "photos/odd/palette.gif",
        "photos/odd/rgba.png",
        "photos/odd/progressive.jpg",
        "photos/odd/exif_rotated_6.jpg",
        "photos/odd/cmyk.jpg",
        "data/jpeg/restart.jpg",
    ]
    .map(|name| (name, read(name)))
    .to_vec()
}

#[test]
fn a_cut_file_is_refused_wherever_it_is_cut() {
    for (name, whole) in whole_files() {
        assert!(decode(&whole).is_ok(), "{name}");
        for part in 0..64 {
            let result = decode(&whole[..whole.len() * part / 64]);
            assert!(result.is_err(), "{name} cut at {part}/64 was decoded");
        }
    }
}

/// Baseline, progressive, with restart markers, grey, and with four components.
fn jpegs() -> Vec<(&'static str, Vec<u8>)> {
    let mut files: Vec<_> = whole_files().into_iter().filter(|(name, _)| name.ends_with(".jpg")).collect();
    let mut grey = Vec::new();
    DynamicImage::from(upright()).into_luma8().write_with_encoder(JpegEncoder::new(&mut grey)).unwrap();
    files.push(("grey", grey));
    files
}

/// Bytes in front of each marker of a JPEG that `wanted` takes, entropy-coded data included.
fn before_markers(jpeg: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), 2);
    while at + 1 < jpeg.len() {
        match jpeg[at..at + 2] {
            [0xFF, 0x00 | 0xFF] => at += 1,
            [0xFF, marker] => {
                if wanted(marker) {
                    found.push(at);
                }
                at += 2;
                if !matches!(marker, 0x01 | 0xD0..=0xD9) {
                    at += usize::from(u16::from_be_bytes([jpeg[at], jpeg[at + 1]]));
                }
            }
            _ => at += 1,
        }
    }
    found
}

#[test]
fn a_jpeg_cut_in_its_middle_is_refused_with_an_end_marker_too() {
    for (name, whole) in jpegs() {
        let with_end = |length: usize| [&whole[..length], b"\xFF\xD9"].concat();
        for part in 1..64 {
            let result = decode(&with_end(whole.len() * part / 64));
            assert!(matches!(result, Err(DecodeError::Corrupt { .. })), "{name} cut at {part}/64");
        }
        // Where a scan or a restart interval is whole, and the picture is not.
        let scans = before_markers(&whole, |marker| marker == 0xDA);
        for at in before_markers(&whole, |marker| matches!(marker, 0xC4 | 0xDA | 0xD0..=0xD7)) {
            assert!(at < scans[0] || decode(&with_end(at)).is_err(), "{name} cut at {at}");
        }
    }
}

/// What stands where an ICC profile should, and is none.
const NO_PROFILE: &[u8] = b"no ICC profile";

/// The segment of a JPEG that holds part `number` of the `count` parts of an ICC profile.
fn icc_part(number: u8, count: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16 + 16).to_be_bytes();
    [b"\xFF\xE2".as_slice(), &length, b"ICC_PROFILE\0", &[number, count], content].concat()
}

#[test]
fn what_stands_behind_a_jpeg_is_not_looked_at() {
    let mut sideways = Vec::new();
    encode(JpegEncoder::new(&mut sideways), &stored(Orientation::NoTransforms), exif(6));
    let mut video = b"MotionPhoto_Data\0\0\0\x18ftypmp42\xFF\xD8\xFF\xC0\0\x11\x08\xFF\xFF\xFF\xFF\x03".to_vec();
    video.resize(20_000, 7);
    let profile = [icc_part(1, 2, NO_PROFILE).as_slice(), b"\xFF\xD9"].concat();
    let trailers = [sideways.clone(), [sideways, video.clone()].concat(), video, vec![0; 1024], profile, vec![0xFF; 64]];
    for (name, whole) in jpegs() {
        let plain = decode(&whole).unwrap();
        let limits = Limits::default();
        for trailer in &trailers {
            let file = [whole.as_slice(), trailer].concat();
            assert!(decode(&file).unwrap() == plain, "{name}");
            assert_eq!(media::dimensions(&file, &limits), media::dimensions(&whole, &limits), "{name}");
            // Without its own end marker it is refused, and never for the size of what stands there.
            let open = [&whole[..whole.len() - 2], trailer].concat();
            match decode(&open) {
                Ok(picture) => assert!(picture == plain, "{name}"),
                Err(error) => assert!(!error.is_too_large() && error.to_string().contains("end"), "{name}: {error}"),
            }
        }
    }
}

#[test]
fn many_usual_jpegs_are_whole() {
    let mut seen = 0;
    for entry in walkdir::WalkDir::new(tests().join("data/caltech101-val")) {
        let path = entry.unwrap().into_path();
        if path.extension().is_some_and(|extension| extension == "jpg") {
            decode(&fs_err::read(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 100, "only {seen}");
}

/// Puts a chunk behind the IHDR of a PNG, with a wrong checksum: the chunk is left out before a decoder could check it.
fn with_chunk(png: &[u8], kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    [&png[..33], &(content.len() as u32).to_be_bytes(), &kind, content, &[0; 4], &png[33..]].concat()
}

#[test]
fn large_metadata_does_not_hinder_a_png() {
    let mut png = Vec::new();
    encode(PngEncoder::new(&mut png), &stored(Orientation::NoTransforms), Vec::new());
    let text = [b"Comment\0".as_slice(), &vec![b'x'; 20 << 20]].concat();
    for kind in [*b"tEXt", *b"zTXt", *b"iTXt", *b"eXIf", *b"prVt"] {
        assert_eq!(decode(&with_chunk(&png, kind, &text)).unwrap(), upright());
    }
}

#[test]
fn profiles_that_are_of_no_use_change_nothing_and_cost_nothing() {
    let mut png = Vec::new();
    encode(PngEncoder::new(&mut png), &stored(Orientation::NoTransforms), Vec::new());
    // 8 KB that would be 8 MB.
    let bomb = {
        let mut packed = flate2::write::ZlibEncoder::new(b"bomb\0\0".to_vec(), flate2::Compression::best());
        std::io::Write::write_all(&mut packed, &vec![0; 8 << 20]).unwrap();
        packed.finish().unwrap()
    };
    for content in [[b"x\0\0", NO_PROFILE].concat(), b"no end".to_vec(), Vec::new(), bomb] {
        assert_eq!(decode(&with_chunk(&png, *b"iCCP", &content)).unwrap(), upright());
    }
    let mut jpeg = Vec::new();
    encode(JpegEncoder::new(&mut jpeg), &stored(Orientation::NoTransforms), Vec::new());
    let plain = decode(&jpeg).unwrap();
    let part = |number: u8, content: &[u8]| icc_part(number, 31, content);
    // 2 MB in 31 parts, the 7th missing; and one part of 31.
    let parts: Vec<u8> = (1..=31).filter(|number| *number != 7).flat_map(|number| part(number, &vec![1; 65_000])).collect();
    for profile in [parts, part(1, &read("data/colour/p3.icc")), [part(1, b"X"), part(1, b"X")].concat()] {
        let start = computed();
        assert!(decode(&[&jpeg[..2], &profile, &jpeg[2..]].concat()).unwrap() == plain);
        assert!(computed().saturating_sub(start).as_secs() < 2);
    }
    let whole = icc_part(1, 1, &read("data/colour/grey.icc"));
    assert!(decode(&[&jpeg[..2], &whole, &jpeg[2..]].concat()).unwrap() == plain, "a grey profile on RGB");
}

#[test]
fn damage_never_panics() {
    for (name, whole) in whole_files() {
        for part in 0..64 {
            for change in [0xFF, 0x01, 0x80] {
                let mut damaged = whole.clone();
                damaged[whole.len() * part / 64] ^= change;
                if let Err(error) = decode(&damaged) {
                    assert!(!error.to_string().is_empty(), "{name}");
                }
            }
        }
    }
}

#[test]
fn rare_jpegs_have_pillows_pixels() {
    for name in ["restart", "ycck", "rgb", "rgb_ids"] {
        let ours = decode(&read(&format!("data/jpeg/{name}.jpg"))).unwrap();
        let pillow = decode(&read(&format!("data/jpeg/{name}.png"))).unwrap();
        let difference = mean_difference(&ours, &pillow);
        println!("{name}: mean {difference:.3}");
        assert!(difference < 1.0, "{name}: {difference}");
    }
}

#[test]
fn cmyk_without_adobes_marker_has_the_same_pixels() {
    let with = read("photos/odd/cmyk.jpg");
    let marker = with.windows(2).position(|pair| pair == [0xFF, 0xEE]).unwrap();
    let without = [&with[..marker], &with[marker + 16..]].concat();
    assert_eq!(decode(&with).unwrap(), decode(&without).unwrap());
}

/// An EXIF block with one entry, the orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    block.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    block
}

/// Large patches, no two corners alike.
fn upright() -> RgbImage {
    RgbImage::from_fn(64, 32, |x, y| Rgb([if x < 16 { 250 } else { 20 }, if y < 8 { 240 } else { 30 }, (x * 3) as u8]))
}

/// `upright`, stored so that the orientation turns it back.
fn stored(orientation: Orientation) -> DynamicImage {
    let mut picture = DynamicImage::ImageRgb8(upright());
    picture.apply_orientation(match orientation {
        Orientation::Rotate90 => Orientation::Rotate270,
        Orientation::Rotate270 => Orientation::Rotate90,
        own_inverse => own_inverse,
    });
    picture
}

fn encode(mut encoder: impl ImageEncoder, picture: &DynamicImage, exif: Vec<u8>) {
    encoder.set_exif_metadata(exif).unwrap();
    encoder.write_image(picture.as_bytes(), picture.width(), picture.height(), ExtendedColorType::Rgb8).unwrap();
}

/// Moves the `eXIf` chunk of a PNG behind its pixels.
fn exif_last(png: &[u8]) -> Vec<u8> {
    let start = png.windows(4).position(|kind| kind == b"eXIf").unwrap() - 4;
    let end = start + 12 + exif(1).len();
    let trailer = png.len() - 12;
    [&png[..start], &png[end..trailer], &png[start..end], &png[trailer..]].concat()
}

fn tiff(picture: &DynamicImage, orientation: u8) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut file).unwrap();
    let mut page = encoder.new_image::<tiff::encoder::colortype::RGB8>(picture.width(), picture.height()).unwrap();
    page.encoder().write_tag(tiff::tags::Tag::Orientation, u16::from(orientation)).unwrap();
    page.write_data(picture.as_bytes()).unwrap();
    file.into_inner()
}

#[test]
fn all_eight_orientations_are_applied_in_every_format_that_carries_them() {
    for value in 1..=8 {
        let orientation = Orientation::from_exif(value).unwrap();
        let picture = stored(orientation);
        let (mut jpeg, mut png, mut webp) = (Vec::new(), Vec::new(), Vec::new());
        encode(JpegEncoder::new_with_quality(&mut jpeg, 95), &picture, exif(value));
        encode(PngEncoder::new(&mut png), &picture, exif(value));
        encode(WebPEncoder::new_lossless(&mut webp), &picture, exif(value));
        // Some writers keep the prefix that belongs to JPEG alone.
        let mut prefixed = Vec::new();
        let block = [b"Exif\0\0", exif(value).as_slice()].concat();
        encode(WebPEncoder::new_lossless(&mut prefixed), &picture, block);

        let files = [
            ("JPEG", jpeg),
            ("PNG, exif last", exif_last(&png)),
            ("PNG", png),
            ("WebP", webp),
            ("WebP, prefixed", prefixed),
            ("TIFF", tiff(&picture, value)),
        ];
        for (name, file) in files {
            assert_eq!(media::dimensions(&file, &Limits::default()), Ok((64, 32)), "{name} {value}");
            let difference = mean_difference(&decode(&file).unwrap(), &upright());
            assert!(difference < if name == "JPEG" { 4.0 } else { 1e-9 }, "{name} {value}: {difference}");
        }
    }
}

#[test]
fn an_orientation_that_is_none_is_ignored() {
    for block in [exif(0), exif(9), exif(255), Vec::new(), b"II*\0\xFF\xFF\xFF\xFF".to_vec()] {
        let mut png = Vec::new();
        encode(PngEncoder::new(&mut png), &stored(Orientation::NoTransforms), block);
        assert_eq!(decode(&png).unwrap(), upright());
    }
}

#[test]
fn formats_that_are_not_offered_are_named() {
    for (bytes, word) in [
        (&b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n"[..], "radiance"),
        (b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0", "icon"),
        (b"P6\n30000 30000\n255\n", "portable"),
        (b"\xFF\x0A\0\0", "JPEG XL"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text"),
        (b"\x01\x02\x03\x80\xFF", "unknown"),
    ] {
        let error = decode(bytes).unwrap_err();
        assert!(matches!(error, DecodeError::NotOffered { .. }), "{error}");
        assert!(error.to_string().contains(word) && error.to_string().contains(Format::OFFERED), "{error}");
    }
    for (bytes, name) in [
        (&b"\0\0\0\x20ftypavif\0\0\0\0mif1"[..], "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
    ] {
        let error = decode(bytes).unwrap_err();
        assert_eq!(error, DecodeError::PhoneFormat { name });
        assert!(error.to_string().contains(name) && error.to_string().contains("JPEG"), "{error}");
    }
    assert!(matches!(decode(b"\0\0\0\x18ftypmp42\0\0\0\0isom").unwrap_err(), DecodeError::NotOffered { .. }));
    assert_eq!(decode(&[]), Err(DecodeError::Empty));
}

#[test]
fn the_limit_counts_pixels_and_the_longest_side() {
    let mut png = Cursor::new(Vec::new());
    upright().write_to(&mut png, ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let with = |max_pixels, max_side| media::decode(&png, &Limits { max_pixels, max_side });
    assert!(with(64 * 32, 64).is_ok());
    assert_eq!(with(64 * 32 - 1, 64), Err(DecodeError::TooManyPixels { width: 64, height: 32, max: 64 * 32 - 1 }));
    assert_eq!(with(64 * 32, 63), Err(DecodeError::SideTooLong { width: 64, height: 32, max: 63 }));
}

/// Samples that have to be put in order, or converted, lie in memory twice: 6 and 6 bytes to a pixel here, of the 11 that there are.
#[test]
fn the_limit_counts_the_samples_of_a_tiff_twice_where_they_are_held_twice() {
    let with = |name: &str, max_pixels| media::decode(&read(&format!("data/tiff/{name}.tif")), &Limits::with_max_pixels(max_pixels));
    let area = 40 * 24;
    assert!(with("rgb-16", area).is_ok() && with("rgb-planar", area).is_ok());
    let planar = |max_pixels: u64| with("rgb-16-planar", max_pixels);
    assert_eq!(planar(area), Err(DecodeError::TooManyPixels { width: 40, height: 24, max: area * 11 / 12 }));
    assert!(planar(area * 12 / 11 + 1).is_ok());
}
