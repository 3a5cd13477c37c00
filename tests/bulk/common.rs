//! The program, and folders with all that is found in the wild.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{ImageBuffer, Luma, Rgb, RgbImage};

pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dino-server"))
}

pub(crate) fn run(arguments: &[&str], paths: &[(&str, &Path)]) -> Output {
    let mut command = program();
    command.args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().expect("the program starts")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn model() -> PathBuf {
    root().join("tests/data/tiny-model")
}

pub(crate) fn photo(name: &str) -> Vec<u8> {
    fs_err::read(root().join("tests/photos").join(name)).expect("a bundled photo")
}

/// Three classes of good pictures, and whatever else lies in folders of pictures. Returns the number of good ones and
/// the names that have to be said.
pub(crate) fn wild_folder(folder: &Path) -> (usize, Vec<&'static str>) {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs_err::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
        fs_err::write(path, bytes).expect("a file");
    };
    let mut good = 0;
    for class in ["cat", "big dog", "züg.1"] {
        for i in 0..4_u8 {
            let picture = RgbImage::from_fn(40 + 10 * u32::from(i), 60, |x, y| Rgb([x as u8 * 3, y as u8 * 2, i * 40 + class.len() as u8]));
            let path = folder.join(class).join(format!("{i}.png"));
            fs_err::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
            picture.save(path).expect("a picture");
            good += 1;
        }
    }
    write("cat/deep/er/photo.jpg", &photo("flower.jpg"));
    write("cat/no-extension", &photo("flower.jpg"));
    let sixteen = ImageBuffer::<Luma<u16>, _>::from_fn(30, 30, |x, y| Luma([(x * y * 70) as u16]));
    sixteen.save(folder.join("cat/16bit.png")).expect("a picture");
    RgbImage::new(1, 1).save(folder.join("cat/one.png")).expect("a picture");
    write("cat/cmyk.jpg", &photo("odd/cmyk.jpg"));
    good += 5;

    let whole = photo("china.jpg");
    write("cat/cut.jpg", &whole[..whole.len() / 2]);
    write("cat/empty.jpg", b"");
    write("cat/text.png", b"not a picture");
    fs_err::create_dir_all(folder.join("cat/folder.jpg")).expect("a folder");
    std::os::unix::fs::symlink("nowhere", folder.join("cat/dangling.jpg")).expect("a link");
    std::os::unix::fs::symlink("..", folder.join("cat/loop")).expect("a link");
    write("cat/.hidden.jpg", b"hidden");
    (good, vec!["cut.jpg", "empty.jpg", "text.png", "dangling.jpg", "loop"])
}

/// A model whose vectors are others: the same graph with another transform.
pub(crate) fn other_model(folder: &Path) -> PathBuf {
    let other = folder.join("other-model");
    fs_err::create_dir(&other).expect("a folder");
    for file in fs_err::read_dir(model()).expect("the model") {
        let file = file.expect("a file");
        fs_err::copy(file.path(), other.join(file.file_name())).expect("a copy");
    }
    let manifest = fs_err::read_to_string(other.join("manifest.json")).expect("a manifest");
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    manifest["transform"]["mean"] = serde_json::json!([0.5, 0.5, 0.5]);
    fs_err::write(other.join("manifest.json"), manifest.to_string()).expect("a file");
    other
}

/// So many small pictures that differ, in two classes.
pub(crate) fn many_pictures(folder: &Path, count: usize) {
    for number in 0..count {
        let path = folder.join(["even", "odd"][number % 2]).join(format!("{number:04}.png"));
        fs_err::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
        let picture = RgbImage::from_fn(24, 24, |x, y| Rgb([(x * 10) as u8, (y * 10) as u8, (number * 37 % 256) as u8]));
        picture.save(path).expect("a picture");
    }
}
