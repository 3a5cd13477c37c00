//! The examples of the library do what they say.

use std::path::PathBuf;

#[expect(dead_code, reason = "its main function is the program's")]
#[path = "../examples/classify.rs"]
mod classify;
#[expect(dead_code, reason = "its main function is the program's")]
#[path = "../examples/embed.rs"]
mod embed;
#[expect(dead_code, reason = "its main function is the program's")]
#[path = "../examples/segment.rs"]
mod segment;

fn path(below: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(below)
}

#[test]
fn an_embedding_has_the_models_dimension_and_length_one() {
    let vector = embed::embed(&path("models/demo"), &path("tests/photos/coffee.png")).unwrap();
    assert_eq!(vector.len(), 192);
    assert!((vector.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn pictures_are_classified_by_themselves() {
    let pictures = path("tests/data/caltech101-val");
    let accuracy = classify::accuracy(&path("models/demo"), &pictures, &pictures).unwrap();
    assert!(accuracy > 0.999, "{accuracy}");
}

#[test]
fn a_mask_lies_in_its_picture() {
    let object = segment::find(&path("models/demo"), &path("tests/photos/coffee.png")).unwrap();
    assert_eq!((object.mask.width(), object.mask.height()), (600, 400));
    assert!(object.mask.area() > 0 && object.mask.area() < 600 * 400, "{}", object.mask.area());
    assert!(object.mask.png().unwrap().starts_with(b"\x89PNG"));
}
