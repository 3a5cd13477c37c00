//! The evaluations of retrieval and of copy detection as programs, on pictures painted for them.

mod program;

use std::path::Path;
use std::process::{Command, Output};

use image::{Rgb, RgbImage, imageops};
use program::{report, text};
use serde_json::{Value, json};

/// Picture `number`: rings and stripes of its own colours.
fn paint(number: u32) -> RgbImage {
    RgbImage::from_fn(96, 80, |x, y| {
        let ring = ((x as f32 - 48.0).hypot(y as f32 - 40.0) / (4.0 + number as f32)) as u32 % 2;
        let stripe = (x * (number + 1) / 40 + y / 16) % 3;
        Rgb([(40 * number % 256) as u8, (ring * 200) as u8, (stripe * 100) as u8])
    })
}

fn save(picture: &RgbImage, path: &Path) {
    fs_err::create_dir_all(path.parent().expect("a folder")).expect("made");
    picture.save_with_format(path, image::ImageFormat::Jpeg).expect("saved");
}

fn evaluate(verb: &str, data: &Path, flags: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg(verb).arg("--model").arg(model).arg("--data").arg(data).args(flags).output().expect("the program starts")
}

fn fails(output: &Output, code: i32, words: &str) {
    assert!(output.status.code() == Some(code) && text(&output.stderr).contains(words), "{words}: {}", text(&output.stderr));
}

#[test]
fn copies_are_found_among_distractors() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: String| folder.path().join(path);
    for number in 0..5 {
        let picture = paint(number);
        save(&picture, &at(format!("original/20{number:02}00.jpg")));
        save(&imageops::crop_imm(&picture, 6, 5, 84, 70).to_image(), &at(format!("crops/20/20{number:02}00.jpg")));
        save(&imageops::rotate180(&imageops::blur(&picture, 1.0)), &at(format!("strong/20{number:02}01.jpg")));
        save(&paint(number + 20), &at(format!("others/{number}.jpg")));
    }
    fs_err::write(at("others/notes.txt".into()), "no picture").expect("written");
    let evaluate = |flags: &[&str]| evaluate("copy-eval", folder.path(), &[&["--image-size", "48"], flags].concat());
    let found = report(&evaluate(&[]));
    let map = |report: &Value, name: &str| report["map"][name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert!((map(&found, "original") - 1.0).abs() < 1e-9 && map(&found, "crops/20") > 0.5, "{found}");
    assert_eq!((&found["originals"], &found["distractors"]), (&5.into(), &0.into()));
    let others = at("others".into());
    let others = others.to_str().expect("a string");
    let whitened = report(&evaluate(&["--distractors", others, "--whitening", others]));
    assert!((0.0..=1.0).contains(&map(&whitened, "strong")) && whitened["distractors"] == 5, "{whitened}");
    fails(&evaluate(&["--image-size", "1"]), 2, "--image-size");
    fs_err::write(at("strong/200001.jpg".into()), "no picture").expect("written");
    fails(&evaluate(&[]), 1, "200001.jpg");
    fs_err::remove_dir_all(at("strong".into())).expect("removed");
    fs_err::remove_dir_all(at("crops".into())).expect("removed");
    fails(&evaluate(&[]), 1, "no copies");
    fs_err::remove_dir_all(at("original".into())).expect("removed");
    fails(&evaluate(&[]), 1, "no folder original");
}

#[test]
fn landmarks_are_found_in_their_pictures() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: String| folder.path().join("roxford5k").join(path);
    for number in 0..6 {
        save(&paint(number), &at(format!("jpg/all_{number}.jpg")));
    }
    for query in 0..2 {
        save(&imageops::crop_imm(&paint(query), 4, 4, 88, 72).to_image(), &at(format!("jpg/query_{query}.jpg")));
    }
    let judged = |query: u32| json!({"bbx": [0, 0, 5, 5], "easy": [query], "hard": [], "junk": [query + 2]});
    let truth = json!({
        "imlist": (0..6).map(|number| format!("all_{number}")).collect::<Vec<_>>(),
        "qimlist": ["query_0", "query_1"],
        "gnd": [judged(0), judged(1)],
    });
    let evaluate = |flags: &[&str]| evaluate("retrieval-eval", folder.path(), flags);
    fails(&evaluate(&[]), 1, "gnd_roxford5k.pkl");
    fs_err::write(at("gnd_roxford5k.json".into()), truth.to_string()).expect("written");
    let found = report(&evaluate(&[]));
    assert!(found["medium"]["map"].as_f64().is_some_and(|map| map > 50.0) && found["hard"].is_null(), "{found}");
    assert_eq!((&found["queries"], &found["pictures"]), (&2.into(), &6.into()));
    let scaled = report(&evaluate(&["--multiscale", "--imsize", "64"]));
    assert!(scaled["easy"]["mp1"].is_number(), "{scaled}");
    fails(&evaluate(&["--dataset", "rparis6k"]), 1, "gnd_rparis6k.pkl");
    fs_err::remove_file(at("jpg/all_3.jpg".into())).expect("removed");
    fails(&evaluate(&[]), 1, "all_3.jpg is missing");
    fs_err::write(at("gnd_roxford5k.pkl".into()), b"\x80\x02cnumpy\narray\n.").expect("written");
    fails(&evaluate(&[]), 1, "not plain");
}
