//! `import`, `snapshot` and `restore` as programs: folders with all that is found in the wild, twice over, and damage.

use std::path::Path;
use std::process::{Command, Output};

use dino_server::index::{Collection, EmbeddedStore, IndexOptions, Search, Store};

use super::common::{many_pictures, model, other_model, program, run, text, wild_folder};

fn import(images: &Path, data: &Path, more: &[&str]) -> Output {
    let model = model();
    let arguments = [&["import"], more].concat();
    run(&arguments, &[("--images", images), ("--data-dir", data), ("--model", &model)])
}

#[test]
fn a_wild_folder_is_imported_without_its_broken_files() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (folder.path().join("images"), folder.path().join("data"));
    let (good, bad) = wild_folder(&images);

    let output = import(&images, &data, &["--thumbnails", "2"]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    for name in &bad {
        assert_eq!(stderr.matches(&format!("/{name}: ")).count(), 1, "{name} in {stderr}");
    }
    assert!(!stderr.contains("hidden") && !stderr.contains("folder.jpg"), "{stderr}");
    assert!(stdout.contains(&format!("{good} stored, 0 unchanged, {} skipped", bad.len())), "{stdout}");

    let check = || {
        let store = EmbeddedStore::open(&data, IndexOptions::default()).unwrap();
        let collection = store.collection(&"default".parse().unwrap()).unwrap();
        assert_eq!(collection.len(), good);
        let deep = collection.get("cat/deep/er/photo.jpg").unwrap();
        assert_eq!(deep.item.labels, ["cat"]);
        assert_eq!(collection.get("züg.1/3.png").unwrap().item.labels, ["züg.1"]);
        assert_eq!(collection.get("big dog/0.png").unwrap().item.labels, ["big dog"]);
        // The first two of each class, in the order of their paths.
        assert!(collection.thumbnail("cat/0.png").is_ok() && collection.thumbnail("cat/2.png").is_err());
        let small = image::load_from_memory(&collection.thumbnail("big dog/1.png").unwrap()).unwrap();
        assert_eq!((small.width(), small.height()), (50, 60));
        // A picture is its own nearest neighbour.
        let found = collection.search(&deep.vector, &Search { k: 2, ..Search::default() }).unwrap();
        let nearest: Vec<_> = found.iter().map(|hit| hit.item.id.as_str()).collect();
        assert_eq!(nearest, ["cat/deep/er/photo.jpg", "cat/no-extension"]);
    };
    check();

    // Again: nothing to do. A changed, a new and a forced picture are taken up.
    let output = import(&images, &data, &["--thumbnails", "2"]);
    assert!(text(&output.stdout).contains(&format!("0 stored, {good} unchanged")), "{}", text(&output.stdout));
    fs_err::copy(images.join("cat/0.png"), images.join("cat/1.png")).unwrap();
    let output = import(&images, &data, &["--thumbnails", "2"]);
    assert!(text(&output.stdout).contains(&format!("1 stored, {} unchanged", good - 1)));
    let output = import(&images, &data, &["--thumbnails", "2", "--force"]);
    assert!(text(&output.stdout).contains(&format!("{good} stored, 0 unchanged")));
    check();
}

#[test]
fn nothing_readable_is_a_failure_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (folder.path().join("images"), folder.path().join("data"));
    fs_err::create_dir_all(images.join("cat")).unwrap();
    fs_err::write(images.join("cat/a.jpg"), "text").unwrap();
    let output = import(&images, &data, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no readable picture"), "{}", text(&output.stderr));
    assert!(EmbeddedStore::open(&data, IndexOptions::default()).unwrap().list().unwrap().is_empty());
    let output = import(&folder.path().join("none"), &data, &[]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn bad_collection_names_are_wrong_usage_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (folder.path().join("images"), folder.path().join("inner/data"));
    wild_folder(&images);
    for name in ["..", "%2e%2e", "../x", "a/b", "a\\b", "", " ", &"x".repeat(300)] {
        let output = import(&images, &data, &["--collection", name]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", text(&output.stderr));
    }
    assert!(!folder.path().join("inner").exists());
}

#[test]
fn another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (folder.path().join("images"), folder.path().join("data"));
    wild_folder(&images);
    assert!(import(&images, &data, &[]).status.success());
    let other = other_model(folder.path());
    let output = run(&["import"], &[("--images", &images), ("--data-dir", &data), ("--model", &other)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("use that model, or another collection"), "{}", text(&output.stderr));
}

#[test]
fn a_snapshot_moves_a_collection() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (folder.path().join("images"), folder.path().join("data"));
    let (good, _) = wild_folder(&images);
    assert!(import(&images, &data, &[]).status.success());
    let file = folder.path().join("gallery.dino");
    let output = run(&["snapshot"], &[("--data-dir", &data), ("--out", &file)]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let other = folder.path().join("other");
    let restore = |more: &[&str]| run(&[&["restore"], more].concat(), &[("--data-dir", &other), ("--from", &file)]);
    assert!(text(&restore(&[]).stdout).contains(&format!("restored {good} items")));
    let refused = restore(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--if-missing"), "{}", text(&refused.stderr));
    assert!(text(&restore(&["--if-missing"]).stdout).contains("nothing was restored"));
    assert!(text(&restore(&["--replace"]).stdout).contains(&format!("restored {good} items")));
    assert!(restore(&["--collection", "copy"]).status.success());
    let items = |data: &Path| {
        let store = EmbeddedStore::open(data, IndexOptions::default()).unwrap();
        store.collection(&"default".parse().unwrap()).unwrap().page(None, 100).unwrap()
    };
    assert_eq!(items(&other), items(&data));

    let whole = fs_err::read(&file).unwrap();
    fs_err::write(&file, &whole[..whole.len() * 6 / 10]).unwrap();
    let torn = restore(&["--replace"]);
    assert_eq!(torn.status.code(), Some(1));
    assert!(text(&torn.stderr).contains("gallery.dino is damaged"), "{}", text(&torn.stderr));
    assert_eq!(items(&other), items(&data));
    let missing = run(&["snapshot", "--collection", "none"], &[("--data-dir", &data), ("--out", &file)]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn a_full_disk_is_named_and_keeps_what_was_stored() {
    let folder = tempfile::tempdir().unwrap();
    let (images, data) = (folder.path().join("images"), folder.path().join("data"));
    many_pictures(&images, 20);
    assert!(import(&images, &data, &[]).status.success());
    let length = fs_err::metadata(data.join("store.redb")).unwrap().len();
    for number in 0..300 {
        fs_err::copy(images.join("even/0000.png"), images.join(format!("even/copy {number}.png"))).unwrap();
    }
    // The file may not become longer; a write beyond fails as on a full disk, once the signal for it is ignored.
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", length.div_ceil(512))).arg("sh").arg(program().get_program());
    let output = limited.args(["import", "--images"]).arg(&images).arg("--data-dir").arg(&data).arg("--model").arg(model());
    let output = output.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot store ") && stderr.contains("run this again"), "{stderr}");
    let again = import(&images, &data, &[]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(text(&again.stdout).contains("320 items in all"), "{}", text(&again.stdout));
}
