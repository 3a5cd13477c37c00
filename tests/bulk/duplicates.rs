//! `duplicates`: what is a copy, what is alike, and the reports.

use std::path::Path;
use std::process::Output;

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage, imageops};
use serde_json::Value;

use super::common::{photo, root, run, text, wild_folder};

fn duplicates(images: &Path, more: &[&str]) -> Output {
    run(&[&["duplicates"], more].concat(), &[("--images", images)])
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn paths(group: &Value) -> Vec<&str> {
    group["items"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect()
}

/// Two photos with copies, one of them brighter, flat pictures, and what is no picture.
fn folder_with_copies(folder: &Path) {
    fs_err::create_dir_all(folder.join("deep")).unwrap();
    let original = image::load_from_memory(&photo("coffee.png")).unwrap().into_rgb8();
    let half = imageops::thumbnail(&original, original.width() / 2, original.height() / 2);
    fs_err::write(folder.join("cup.png"), photo("coffee.png")).unwrap();
    let jpeg = |picture: &RgbImage, name: &str| {
        let mut file = Vec::new();
        picture.write_with_encoder(JpegEncoder::new_with_quality(&mut file, 60)).unwrap();
        fs_err::write(folder.join(name), file).unwrap();
    };
    jpeg(&original, "deep/again.jpg");
    jpeg(&half, "a-half.jpg");
    // The same scene under more light: no copy.
    jpeg(&imageops::brighten(&original, 40), "bright.jpg");
    fs_err::write(folder.join("flower.jpg"), photo("flower.jpg")).unwrap();
    fs_err::write(folder.join("deep/flower <2>.jpg"), photo("flower.jpg")).unwrap();
    for (name, value, side) in [("white.png", 255, 200), ("large-white.png", 255, 400), ("black.png", 0, 200)] {
        RgbImage::from_pixel(side, side, Rgb([value; 3])).save(folder.join(name)).unwrap();
    }
    fs_err::write(folder.join("notes.txt"), "no picture").unwrap();
}

#[test]
fn copies_are_found_by_their_pixels_alone() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    folder_with_copies(&images);
    let before = listing(&images);

    let output = duplicates(&images, &[]);
    let report: Value = serde_json::from_str(&said(&output)).unwrap();
    let groups = report["groups"].as_array().unwrap();
    let found: Vec<_> = groups.iter().map(paths).collect();
    // The largest first; of equal ones the first by its path. Flat pictures are in no group.
    assert_eq!(found, [vec!["cup.png", "deep/again.jpg", "a-half.jpg"], vec!["deep/flower <2>.jpg", "flower.jpg"]]);
    for group in groups {
        assert_eq!((&group["kind"], &group["lowest_similarity"]), (&"copy".into(), &Value::Null));
        let items = group["items"].as_array().unwrap();
        assert!(items.iter().all(|file| file["same_pixels"] == true) && items[0]["copy_of"].is_null());
        assert!(items[1..].iter().all(|file| file["copy_of"] == items[0]["path"]));
    }
    let half = &groups[0]["items"][2];
    assert_eq!((&half["width"], &half["height"], &half["similarity"]), (&300.into(), &200.into(), &Value::Null));
    assert_eq!(half["bytes"], fs_err::metadata(images.join("a-half.jpg")).unwrap().len());
    assert_eq!((&report["pictures"], &report["flat"], &report["model"]), (&9.into(), &3.into(), &Value::Null));
    let skipped = report["skipped"].as_array().unwrap();
    assert!(skipped.len() == 1 && skipped[0]["path"].as_str().unwrap().ends_with("notes.txt"), "{skipped:?}");
    assert!(text(&output.stderr).contains("notes.txt: "));

    // Two files, of which one is for eyes. Nothing is changed.
    let (json, html) = (folder.path().join("r.json"), folder.path().join("r.html"));
    let output = said(&run(&["duplicates"], &[("--images", &images), ("--out", &json), ("--out", &html)]));
    assert_eq!(output, "9 pictures: 2 groups of 5 files with the same pixels, 0 groups of 0 similar files; 1 files skipped\n");
    assert_eq!(serde_json::from_slice::<Value>(&fs_err::read(&json).unwrap()).unwrap(), report);
    let page = fs_err::read_to_string(&html).unwrap();
    assert!(page.contains("flower &lt;2&gt;.jpg") && !page.contains("flower <2>"), "names are escaped");
    assert_eq!(page.matches("<img alt=\"\" src=\"data:image/jpeg;base64,").count(), 5);
    assert_eq!(listing(&images), before);
}

/// Names, sizes and times of all files.
fn listing(folder: &Path) -> Vec<(std::path::PathBuf, u64, std::time::SystemTime)> {
    let entries = dino_vision::bulk::tree::list(folder).unwrap().entries;
    let data = |path: &Path| fs_err::metadata(path).unwrap();
    entries.into_iter().map(|entry| (entry.path.clone(), data(&entry.path).len(), data(&entry.path).modified().unwrap())).collect()
}

#[test]
fn a_model_finds_what_is_alike_and_says_that_it_is_no_copy() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    folder_with_copies(&images);
    // The other test model is too small to tell pictures apart.
    let model = root().join("models/demo");
    let output = duplicates(&images, &["--model", model.to_str().unwrap(), "--min-similarity", "0.94"]);
    let report: Value = serde_json::from_str(&said(&output)).unwrap();
    let groups = report["groups"].as_array().unwrap();
    let group = groups.iter().find(|group| paths(group).contains(&"bright.jpg")).unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!(group["kind"], "similar", "{report:#}");
    let items = group["items"].as_array().unwrap();
    let file = |name: &str| items.iter().find(|file| file["path"] == name).unwrap_or_else(|| panic!("{name} in {group:#}"));
    // It is as large as the picture and comes before it by its name.
    let bright = file("bright.jpg");
    assert_eq!((&bright["same_pixels"], &bright["copy_of"], &items[0]["path"]), (&true.into(), &Value::Null, &"bright.jpg".into()));
    assert_eq!((&file("a-half.jpg")["copy_of"], &file("a-half.jpg")["same_pixels"]), (&"cup.png".into(), &false.into()));
    let similarities: Vec<f64> = items.iter().map(|file| file["similarity"].as_f64().unwrap()).collect();
    assert!(similarities[1..].is_sorted_by(|a, b| a >= b) && (similarities[0] - 1.0).abs() < 1e-6, "{similarities:?}");
    assert_eq!(group["lowest_similarity"].as_f64(), similarities.last().copied());
    assert_eq!((report["model"].as_str().unwrap().len(), report["min_similarity"].as_f64().unwrap() > 0.93), (32, true));
}

#[test]
fn wild_folders_are_read_and_wrong_usage_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let (good, bad) = wild_folder(&images);
    let output = duplicates(&images, &[]);
    let report: Value = serde_json::from_str(&said(&output)).unwrap();
    assert_eq!((&report["pictures"], report["skipped"].as_array().unwrap().len()), (&good.into(), bad.len()));
    for name in &bad {
        assert_eq!(text(&output.stderr).matches(&format!("/{name}: ")).count(), 1, "{name}");
    }
    let empty = folder.path().join("empty");
    fs_err::create_dir(&empty).unwrap();
    let failed = duplicates(&empty, &[]);
    assert_eq!((failed.status.code(), text(&failed.stderr).contains("no file in")), (Some(1), true));
    fs_err::write(empty.join("x"), "no picture").unwrap();
    let failed = duplicates(&empty, &[]);
    assert_eq!((failed.status.code(), text(&failed.stderr).contains("no readable picture")), (Some(1), true));
    for (wrong, word) in [
        (vec!["--out", "report.txt"], ".json or .html"),
        (vec!["--min-similarity", "0.9"], "--model"),
        (vec!["--model", "x", "--min-similarity", "0.3"], "between 0.5 and 1"),
    ] {
        let refused = duplicates(&images, &wrong);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
        assert!(text(&refused.stderr).contains(word), "{}", text(&refused.stderr));
    }
}
