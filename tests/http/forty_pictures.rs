//! What the demo is worth to a visitor: 40 pictures that it was not trained on, with what a person would answer.

use std::collections::BTreeMap;

use image::GrayImage;
use serde_json::Value;

use crate::{
    harness::{Server, file, root},
    markdown::prose,
};

/// Least intersection over union of a mask that shows the object.
const OVERLAP: f64 = 0.5;
/// Answers by which a processor that rounds differently may differ.
const CLOSE_CALLS: usize = 1;

/// Intersection over union.
fn overlap(a: &GrayImage, b: &GrayImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let count = |is: fn(bool, bool) -> bool| a.pixels().zip(b.pixels()).filter(|(a, b)| is(a.0[0] > 127, b.0[0] > 127)).count();
    count(|a, b| a && b) as f64 / count(|a, b| a || b).max(1) as f64
}

fn gray(bytes: &[u8]) -> GrayImage {
    image::load_from_memory(bytes).unwrap().to_luma8()
}

/// The README says how many of them the demo gets right: it is asked for them as a visitor would, without any option.
#[test]
fn the_readme_says_how_many_of_forty_pictures_the_demo_gets_right() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::demo(data.path(), &[]);
    let folder = "data/forty-pictures";
    let answers: BTreeMap<String, Vec<String>> = serde_json::from_slice(&file(&format!("{folder}/answers.json"))).unwrap();
    assert_eq!(answers.len(), 40);
    let (mut named, mut of_classes, mut classes, mut outlined) = (0, 0, 0, 0);
    for (picture, accepted) in &answers {
        let bytes = file(&format!("{folder}/{picture}"));
        let result = server.post("/classify", "application/octet-stream", &bytes).ok().json()["results"][0].clone();
        let is_right = match &result["label"] {
            Value::String(label) => accepted.contains(label),
            _ => accepted.is_empty(),
        };
        named += usize::from(is_right);
        if !accepted.is_empty() {
            classes += 1;
            of_classes += usize::from(is_right);
        }

        let name = picture.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap();
        let truth = gray(&file(&format!("{folder}/{name}.png")));
        let headers = [("content-type", "application/octet-stream"), ("accept", "image/png")];
        let found = overlap(&gray(&server.post_with("/segment", &headers, &bytes).ok().body), &truth);
        outlined += usize::from(found >= OVERLAP);
        let mark = |is: bool| if is { "yes" } else { "no " };
        println!(
            "{name:<16} {:<14} {} mask {found:.2} {}",
            result["label"].as_str().unwrap_or("none"),
            mark(is_right),
            mark(found >= OVERLAP)
        );
    }
    println!("named as a person would: {named} of 40, of the {classes} with a class {of_classes}; outlined by half or more: {outlined}");

    let readme = prose(&fs_err::read_to_string(root().join("README.md")).unwrap());
    let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = |before: &str, after: &str| {
        let (_, rest) = readme.split_once(before).unwrap_or_else(|| panic!("README: {before:?} is missing"));
        rest.split_once(after)
            .and_then(|(number, _)| number.trim().parse::<usize>().ok())
            .unwrap_or_else(|| panic!("README: {before:?} … {after:?}"))
    };
    for (measured, quoted) in [
        (named, said("it names", "of 40 pictures")),
        (of_classes, said("as a person would,", "of the 29 whose class it knows")),
        (outlined, said("and outlines", "with an IoU of at least 0.5")),
    ] {
        assert!(measured.abs_diff(quoted) <= CLOSE_CALLS, "measured {measured}, the README says {quoted}");
    }
    assert_eq!(classes, 29);
}
