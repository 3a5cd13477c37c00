//! The evaluation on videos as a program, on videos painted for it.

mod program;
mod tagged;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{GrayImage, Luma, Rgb, RgbImage};
use program::{report, text};
use serde_json::Value;
use tagged::turn;

const FRAMES: u32 = 6;

/// A red and a blue square that move over grey noise, frame by frame, and their numbers; of one object its mask is white.
fn paint(frames: &Path, masks: &Path, objects: u32) {
    fs_err::create_dir_all(frames).expect("made");
    fs_err::create_dir_all(masks).expect("made");
    for frame in 0..FRAMES {
        let object = |x: u32, y: u32| {
            let inside = |left: u32, top: u32| (left..left + 40).contains(&x) && (top..top + 40).contains(&y);
            if inside(16 + 4 * frame, 16) {
                1
            } else if objects == 2 && inside(96, 64 + 3 * frame) {
                2
            } else {
                0
            }
        };
        let noise = |x: u32, y: u32| ((x * 31 + y * 17 + (x * y) % 13 + frame * 7) % 23) as u8;
        let picture = RgbImage::from_fn(192, 128, |x, y| match object(x, y) {
            0 => Rgb([100 + noise(x, y); 3]),
            1 => Rgb([220, noise(x, y), 30]),
            _ => Rgb([20, noise(x, y), 230]),
        });
        let value = |object: u8| if objects == 1 { object * 255 } else { object };
        picture.save(frames.join(format!("{frame:05}.png"))).expect("saved");
        GrayImage::from_fn(192, 128, |x, y| Luma([value(object(x, y))])).save(masks.join(format!("{frame:05}.png"))).expect("saved");
    }
}

fn evaluate(data: &Path, flags: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("video-eval").arg("--model").arg(model).args(["--image-size", "128"]).arg("--data").arg(data).args(flags);
    command.output().expect("the program starts")
}

/// Changes a byte of the pixels of a PNG file, which only decoding notices.
fn damage(path: &Path) {
    let mut file = fs_err::read(path).expect("a file");
    let middle = file.len() / 2;
    file[middle] ^= 0x55;
    fs_err::write(path, file).expect("written");
}

fn figure(report: &Value, name: &str) -> f64 {
    report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"))
}

#[test]
fn squares_are_followed_and_their_masks_written() {
    let folder = tempfile::tempdir().expect("a folder");
    paint(&folder.path().join("two/frames"), &folder.path().join("two/masks"), 2);
    paint(&folder.path().join("one/frames"), &folder.path().join("one/masks"), 1);
    let out = folder.path().join("found");
    let found = report(&evaluate(folder.path(), &["--out", out.to_str().expect("a string")]));
    let objects: Vec<&String> = found["sequences"].as_object().expect("objects").keys().collect();
    assert_eq!(objects, ["one_1", "two_1", "two_2"]);
    assert_eq!(found["frames"], 2 * (FRAMES - 2), "neither the first nor the last frame is measured");
    assert!(figure(&found, "J-Mean") > 0.6 && figure(&found, "J-Recall") > 0.9, "{found}");
    let mean = f64::midpoint(figure(&found, "J-Mean"), figure(&found, "F-Mean"));
    assert!((figure(&found, "J&F-Mean") - mean).abs() < 1e-9, "{found}");
    for name in ["J-Decay", "F-Recall", "F-Decay"] {
        assert!(found[name].is_number() && found["sequences"]["two_2"][name].is_number(), "{found}");
    }
    // The masks have the numbers of the first one, which is written as it is.
    let numbers = |name: &str| {
        let decoder = png::Decoder::new(std::io::BufReader::new(fs_err::File::open(out.join(name)).expect("written")));
        let mut decoder = decoder;
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().expect("a header");
        assert_eq!(reader.info().color_type, png::ColorType::Indexed);
        let mut values = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut values).expect("pixels");
        let distinct: std::collections::BTreeSet<u8> = values.into_iter().collect();
        distinct.into_iter().collect::<Vec<u8>>()
    };
    assert_eq!(numbers("two/00000.png"), [0, 1, 2]);
    assert_eq!(numbers("two/00005.png"), [0, 1, 2]);
    assert_eq!(numbers("one/00003.png"), [0, 255]);
    // Other settings give other masks.
    let wide = report(&evaluate(folder.path(), &["--size-mask-neighborhood", "0", "--topk", "1000"]));
    assert!((figure(&wide, "J-Mean") - figure(&found, "J-Mean")).abs() > 1e-4, "{wide}");
}

#[test]
fn davis_is_read_as_it_is_unpacked() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    paint(&at("JPEGImages/480p/goat"), &at("Annotations/480p/goat"), 2);
    paint(&at("JPEGImages/480p/cows"), &at("Annotations/480p/cows"), 1);
    fs_err::create_dir_all(at("ImageSets/2017")).expect("made");
    fs_err::write(at("ImageSets/2017/val.txt"), "goat\n").expect("written");
    fs_err::write(at("ImageSets/2017/train.txt"), "cows\n").expect("written");
    let objects = |flags: &[&str]| {
        let found = report(&evaluate(folder.path(), flags));
        found["sequences"].as_object().expect("objects").keys().cloned().collect::<Vec<String>>()
    };
    assert_eq!(objects(&[]), ["goat_1", "goat_2"]);
    assert_eq!(objects(&["--set", "train"]), ["cows_1"]);
}

#[test]
fn what_cannot_be_measured_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let fails = |code: i32, flags: &[&str], words: &str| {
        let output = evaluate(folder.path(), flags);
        assert!(output.status.code() == Some(code) && text(&output.stderr).contains(words), "{words}: {}", text(&output.stderr));
    };
    fails(1, &[], "holds no video");
    let masks = folder.path().join("one/masks");
    paint(&folder.path().join("one/frames"), &masks, 1);
    fails(2, &["--topk", "0"], "--topk");
    fails(2, &["--image-size", "1"], "--image-size");
    let mask = |frame: u32| -> PathBuf { masks.join(format!("{frame:05}.png")) };
    GrayImage::new(10, 10).save(mask(1)).expect("saved");
    fails(1, &[], "00001.png: the mask is of (10, 10)");
    fails(1, &[], "none of the 1 videos");
    GrayImage::new(192, 128).save(mask(1)).expect("saved");
    RgbImage::new(192, 128).save(mask(0)).expect("saved");
    fails(1, &[], "with a palette");
    GrayImage::new(192, 128).save(mask(0)).expect("saved");
    fails(1, &[], "has no object");
    fs_err::remove_file(mask(0)).expect("removed");
    fails(1, &[], "has no mask");
    for frame in 1..FRAMES {
        fs_err::remove_file(mask(frame)).expect("removed");
    }
    GrayImage::from_pixel(192, 128, Luma([1])).save(mask(0)).expect("saved");
    fails(1, &[], "no masks to measure with");
    let out = folder.path().join("found");
    let found = report(&evaluate(folder.path(), &["--out", out.to_str().expect("a string")]));
    assert!(found["J-Mean"].is_null() && out.join("one/00005.png").is_file(), "{found}");
}

#[test]
fn attention_over_a_video_is_a_video() {
    let folder = tempfile::tempdir().expect("a folder");
    let (frames, out) = (folder.path().join("frames"), folder.path().join("drawn"));
    paint(&frames, &folder.path().join("masks"), 1);
    let draw = |flags: &[&str]| {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
        command.args(["attention", "--image-size", "96", "--fps", "12.5"]).arg("--model").arg(model).arg("--video").arg(&frames);
        command.arg("--out").arg(&out).args(flags).output().expect("the program starts")
    };
    let output = draw(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let video = fs_err::read(out.join("video.avi")).expect("written");
    let frames_of = video.windows(10).filter(|bytes| bytes[..4] == *b"00dc" && bytes[8..] == [0xff, 0xd8]).count();
    assert_eq!((&video[..4], &video[8..12], frames_of), (&b"RIFF"[..], &b"AVI "[..], FRAMES as usize));
    assert_eq!(image::image_dimensions(out.join("attn-00003.png")).expect("a picture"), (192, 128));
    assert_eq!(draw(&["--sheets-only"]).status.code(), Some(2));
    // Frames that cannot be read are skipped, whether their header tells it or not.
    fs_err::write(frames.join("00001.png"), "no picture").expect("written");
    damage(&frames.join("00003.png"));
    let output = draw(&[]);
    let stderr = text(&output.stderr);
    assert!(output.status.success() && stderr.contains("00001.png") && stderr.contains("00003.png"), "{stderr}");
    assert!(stderr.contains("4 frames drawn"), "{stderr}");
    RgbImage::new(50, 50).save(frames.join("00009.png")).expect("saved");
    let output = draw(&[]);
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("00009.png has (50, 50) pixels"), "{}", text(&output.stderr));
}

#[test]
fn videos_with_bad_files_are_named_and_the_others_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |path: &str| folder.path().join(path);
    for name in ["a", "b", "c", "d"] {
        paint(&at(name).join("frames"), &at(name).join("masks"), 2);
    }
    fs_err::write(at("a/frames/00003.png"), "no picture").expect("written");
    damage(&at("b/frames/00003.png"));
    fs_err::write(at("c/masks/00002.png"), "no picture").expect("written");
    let output = evaluate(folder.path(), &[]);
    let found = report(&output);
    assert_eq!(found["sequences"].as_object().expect("objects").keys().collect::<Vec<_>>(), ["d_1", "d_2"]);
    assert_eq!(found["frames"], FRAMES - 2);
    let stderr = text(&output.stderr);
    for words in ["a/frames/00003.png", "b/frames/00003.png", "c/masks/00002.png", "3 of 4 videos"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    fs_err::remove_dir_all(at("d")).expect("removed");
    let output = evaluate(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none of the 3 videos"), "{}", text(&output.stderr));
}

#[test]
fn white_with_soft_edges_is_one_object() {
    let folder = tempfile::tempdir().expect("a folder");
    let (frames, masks) = (folder.path().join("one/frames"), folder.path().join("one/masks"));
    paint(&frames, &masks, 1);
    for frame in 0..FRAMES {
        // Two columns of grey at the left of the square: one belongs to it, one does not.
        let path = masks.join(format!("{frame:05}.png"));
        let mut mask = image::open(&path).expect("a mask").into_luma8();
        for y in 16..56 {
            mask.put_pixel(15 + 4 * frame, y, Luma([60]));
            mask.put_pixel(16 + 4 * frame, y, Luma([190]));
        }
        mask.save(&path).expect("saved");
    }
    let soft = report(&evaluate(folder.path(), &[]));
    paint(&frames, &masks, 1);
    let hard = report(&evaluate(folder.path(), &[]));
    assert_eq!(soft, hard);
    // Numbers in one of them.
    GrayImage::from_fn(192, 128, |x, _| Luma([if x < 60 { 3 } else { 0 }])).save(masks.join("00002.png")).expect("saved");
    let mut mask = image::open(masks.join("00000.png")).expect("a mask").into_luma8();
    mask.put_pixel(0, 0, Luma([190]));
    mask.save(masks.join("00000.png")).expect("saved");
    let output = evaluate(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("00002.png: the greys of these masks"), "{}", text(&output.stderr));
}

#[test]
fn frames_and_masks_are_turned_as_their_orientation_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let (frames, masks) = (folder.path().join("two/frames"), folder.path().join("two/masks"));
    paint(&frames, &masks, 2);
    let upright = report(&evaluate(folder.path(), &[]));
    for orientation in [6, 3] {
        paint(&frames, &masks, 2);
        turn(&frames, orientation);
        turn(&masks, orientation);
        assert_eq!(report(&evaluate(folder.path(), &[])), upright, "{orientation}");
    }
}
