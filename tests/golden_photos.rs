//! Decoding and the evaluation transform against pictures that Pillow and torchvision made.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};

use dino_server::media::{self, Limits};
use dino_server::transform::Transform;
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
