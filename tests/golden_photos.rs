//! Decoding and the evaluation transform against pictures that Pillow and torchvision made.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use dino_vision::media::{self, Limits};
use dino_vision::transform::Transform;
use image::RgbImage;

fn photos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos")
}

fn decode(path: &Path) -> RgbImage {
    let bytes = fs_err::read(path).unwrap();
    media::decode(&bytes, &Limits::default()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Mean and largest absolute difference, of 255.
fn difference(ours: &RgbImage, expected: &RgbImage) -> (f64, u8) {
    assert_eq!(ours.dimensions(), expected.dimensions());
    let pairs = || ours.as_raw().iter().zip(expected.as_raw());
    let sum: u64 = pairs().map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    (sum as f64 / ours.as_raw().len() as f64, pairs().map(|(a, b)| a.abs_diff(*b)).max().unwrap())
}

/// Files of a folder, sorted; never none.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn golden_photos_agree_with_pillow() {
    for expected in files(&photos().join("expected")) {
        let stem = expected.file_stem().unwrap();
        let source = ["png", "jpg"].map(|extension| photos().join(stem).with_extension(extension));
        let source = source.iter().find(|path| path.exists()).unwrap();
        let (mean, largest) = difference(&Transform::evaluation().pixels(&decode(source)), &decode(&expected));
        println!("{:14} mean {mean:.4}, largest {largest}", stem.display());
        assert!(mean <= 0.6 && largest <= 8, "{}", source.display());
    }
}

#[test]
fn golden_odd_photos_agree_with_pillow() {
    for expected in files(&photos().join("odd_expected")) {
        let name = expected.file_stem().unwrap();
        let source = photos().join("odd").join(name);
        let (mean, largest) = difference(&Transform::evaluation().pixels(&decode(&source)), &decode(&expected));
        println!("{:20} mean {mean:.4}, largest {largest}", name.display());
        assert!(mean <= 1.0, "{}", source.display());
    }
}

/// Every way in which TIFF stores a picture shows the picture, or is refused by name.
#[test]
fn kinds_of_tiff_agree_with_their_reference() {
    let mut seen = 0;
    for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiff")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.extension().is_none_or(|extension| extension != "tif") {
            continue;
        }
        let bytes = fs_err::read(&path).unwrap();
        let decoded = media::decode(&bytes, &Limits::default());
        seen += 1;
        if let Some(feature) = name.strip_prefix("refused-") {
            let error = decoded.unwrap_err().to_string();
            println!("{name}: {error}");
            let words = if feature == "twelve-bits" { "12 bits".to_owned() } else { feature.replace('-', " ") };
            let words = if feature == "lab" { "L*a*b*".to_owned() } else { words };
            assert!(error.to_lowercase().contains(&words.to_lowercase()), "{name}: {error}");
            continue;
        }
        let expected = decode(&path.with_file_name(name.split('-').next().unwrap()).with_extension("png"));
        let (mean, largest) = difference(&decoded.unwrap_or_else(|error| panic!("{name}: {error}")), &expected);
        println!("{name:32} mean {mean:.4}, largest {largest}");
        assert!(mean <= 0.5 && largest <= 3, "{name}");
        // What is cut is refused here too.
        assert!(media::decode(&bytes[..bytes.len() / 2], &Limits::default()).is_err(), "{name}");
    }
    assert!(seen >= 40, "only {seen} files");
}

/// Numbers of other colour spaces show the colours that `LittleCMS` made them from.
#[test]
fn profiles_are_converted_to_srgb_in_every_format() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/colour");
    let read = |name: &str| decode(&folder.join(name));
    let srgb = read("srgb.png");
    for space in ["p3", "adobe"] {
        for extension in ["png", "webp", "tif", "jpg"] {
            let (mean, _) = difference(&read(&format!("{space}.{extension}")), &srgb);
            println!("{space}.{extension}: mean {mean:.3}");
            assert!(mean <= if extension == "jpg" { 2.5 } else { 0.6 }, "{space}.{extension}: {mean}");
        }
    }
    // Linear light in 8 bits has few dark shades.
    for (name, most) in [("p3_cicp.png", 0.6), ("p3_gama_chrm.png", 0.6), ("linear.png", 2.0)] {
        let (mean, _) = difference(&read(name), &srgb);
        println!("{name}: mean {mean:.3}");
        assert!(mean <= most, "{name}: {mean}");
    }
    let (mean, largest) = difference(&read("grey.png"), &read("grey_shown.png"));
    assert!(mean <= 0.6 && largest <= 2, "grey: {mean}, {largest}");
}

#[test]
fn a_picture_moved_by_a_pixel_would_be_noticed() {
    let picture = decode(&photos().join("coffee.png"));
    let mut moved = picture.clone();
    image::imageops::replace(&mut moved, &picture, 1, 0);
    let expected = decode(&photos().join("expected/coffee.png"));
    assert!(difference(&Transform::evaluation().pixels(&moved), &expected).0 > 0.6);
}

#[test]
fn bad_files_are_refused_with_a_reason_and_all_others_decode() {
    for path in files(&photos().join("odd")) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let result = media::decode(&fs_err::read(&path).unwrap(), &Limits::default());
        match result {
            Ok(picture) => {
                assert!(!name.starts_with("BAD"), "{name} was decoded");
                let pixels = Transform::evaluation().pixels(&picture);
                assert_eq!(pixels.dimensions(), (224, 224), "{name}");
            }
            Err(error) => {
                println!("{name}: {error}");
                assert!(name.starts_with("BAD"), "{name}: {error}");
                assert_eq!(error.is_too_large(), name.contains("bomb"));
            }
        }
    }
}
