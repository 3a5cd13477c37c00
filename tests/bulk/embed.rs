//! `embed`: what is in the files, shares of several jobs, and runs that are killed.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::SystemTime;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Int8Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::common::{many_pictures, model, other_model, photo, program, run, text, wild_folder};

fn embed(images: &Path, out: &Path, more: &[&str]) -> Output {
    let model = model();
    run(&[&["embed"], more].concat(), &[("--images", images), ("--out", out), ("--model", &model)])
}

/// What is written to stdout, of a run that has to succeed.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// All rows and the header of a Parquet file.
fn read(path: &Path) -> (RecordBatch, Value) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap();
    let header = builder.schema().metadata().get("dino").cloned().unwrap();
    let schema = builder.schema().clone();
    let mut batches = builder.with_batch_size(1 << 16).build().unwrap();
    let batch = batches.next().transpose().unwrap().unwrap_or_else(|| RecordBatch::new_empty(schema));
    assert!(batches.next().is_none());
    (batch, serde_json::from_str(&header).unwrap())
}

fn paths(batch: &RecordBatch) -> Vec<String> {
    batch["path"].as_string::<i32>().iter().map(|path| path.unwrap().to_owned()).collect()
}

fn vectors(batch: &RecordBatch) -> Vec<f32> {
    batch["embedding"].as_fixed_size_list().values().as_primitive::<Float32Type>().values().to_vec()
}

/// Shape and numbers of a `.npy` of f32.
fn read_npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = fs_err::read(path).unwrap();
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = text(&bytes[10..end]);
    assert!(header.contains("'<f4'"), "{header}");
    (header, bytes[end..].as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
}

#[test]
fn a_wild_folder_becomes_rows_in_the_order_of_its_paths() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("v.parquet"));
    let (good, bad) = wild_folder(&images);
    let output = embed(&images, &out, &[]);
    let stderr = text(&output.stderr);
    assert!(said(&output).contains(&format!("wrote {good} embeddings of 32 numbers")), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains(&format!("{} files skipped", bad.len())));
    for name in &bad {
        assert_eq!(stderr.matches(&format!("/{name}: ")).count(), 1, "{name} in {stderr}");
    }

    let (batch, header) = read(&out);
    let paths = paths(&batch);
    assert!(paths.len() == good && paths.is_sorted() && paths.contains(&"cat/deep/er/photo.jpg".to_owned()), "{paths:?}");
    for (path, label) in paths.iter().zip(batch["label"].as_string::<i32>()) {
        assert_eq!(path.split('/').next(), label);
    }
    for (path, hash) in paths.iter().zip(batch["sha256"].as_string::<i32>()) {
        let bytes = fs_err::read(images.join(path)).unwrap();
        assert_eq!(hash.unwrap(), dino_server::index::checksum::of_bytes(&bytes));
    }
    let wanted = serde_json::json!({
        "format": 1, "pooling": "cls", "dtype": "f32", "precision": "f32", "normalize": true, "dim": 32, "rows": 1, "shard": "0/1",
        "skipped": bad.len(), "architecture": "dino-vit",
    });
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&header[key], value, "{key}");
    }
    assert_eq!(header["fingerprint"].as_str().unwrap().len(), 32);
    let rows = vectors(&batch);
    for row in rows.chunks_exact(32) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    assert_eq!(
        paths.iter().position(|path| path == "cat/no-extension").map(|row| &rows[row * 32..][..32]),
        paths.iter().position(|path| path == "cat/deep/er/photo.jpg").map(|row| &rows[row * 32..][..32]),
        "the same file, twice"
    );

    // The same numbers as an array, with the rows' names beside it.
    let npy = folder.path().join("v.npy");
    said(&embed(&images, &npy, &[]));
    let (shape, numbers) = read_npy(&npy);
    assert!(shape.contains(&format!("({good}, 32,)")), "{shape}");
    assert_eq!(numbers, rows);
    let beside: Value = serde_json::from_slice(&fs_err::read(folder.path().join("v.npy.json")).unwrap()).unwrap();
    assert_eq!(serde_json::from_value::<Vec<String>>(beside["paths"].clone()).unwrap(), paths);
    assert_eq!(beside["dino"]["fingerprint"], header["fingerprint"]);
    let left: Vec<_> = fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "nothing but the folder and three files is left: {left:?}");
}

#[test]
fn formats_hold_the_same_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    many_pictures(&images, 5);
    let file = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        said(&embed(&images, &out, more));
        read(&out)
    };
    let (exact, _) = file("f32.parquet", &[]);
    let exact = vectors(&exact);
    let (half, header) = file("f16.parquet", &["--dtype", "f16"]);
    assert_eq!(header["dtype"], "f16");
    let half = half["embedding"].as_fixed_size_list().values().as_primitive::<Float16Type>().values().to_vec();
    assert!(exact.iter().zip(&half).all(|(exact, half)| (exact - half.to_f32()).abs() < 1e-3));
    let (int8, _) = file("int8.parquet", &["--dtype", "int8"]);
    let scales = int8["scales"].as_fixed_size_list().values().as_primitive::<Float32Type>().values().to_vec();
    let int8 = int8["embedding"].as_fixed_size_list().values().as_primitive::<Int8Type>().values().to_vec();
    assert!(exact.iter().zip(int8).enumerate().all(|(at, (exact, int8))| (exact - f32::from(int8) * scales[at / 32]).abs() < 0.01));
    let (binary, _) = file("binary.parquet", &["--dtype", "binary"]);
    assert_eq!(binary["embedding"].as_fixed_size_list().value_length(), 4);
    let (plain, header) = file("plain.parquet", &["--normalize", "false"]);
    assert_eq!(header["normalize"], false);
    let plain = vectors(&plain);
    let length = plain[..32].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() > 1e-3 && plain.iter().zip(&exact).take(32).all(|(plain, exact)| (plain / length - exact).abs() < 1e-5));
    let (patches, header) = file("patches.parquet", &["--pooling", "patches"]);
    assert_eq!((&header["rows"], &header["dim"]), (&784.into(), &32.into()));
    assert_eq!(patches["embedding"].as_fixed_size_list().value_length(), 784 * 32);
    let npy = folder.path().join("patches.npy");
    said(&embed(&images, &npy, &["--pooling", "patches"]));
    let (shape, numbers) = read_npy(&npy);
    assert!(shape.contains("(5, 784, 32,)"), "{shape}");
    assert_eq!(numbers, vectors(&patches));
}

#[test]
fn jobs_share_a_folder_and_nothing_is_done_twice() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    many_pictures(&images, 40);
    let out = |name: &str| folder.path().join(name);
    said(&embed(&images, &out("whole.parquet"), &[]));
    let (whole, _) = read(&out("whole.parquet"));
    let mut rows = Vec::new();
    for part in 0..3 {
        let file = out(&format!("{part}.parquet"));
        said(&embed(&images, &file, &["--shard", &format!("{part}/3")]));
        let (batch, header) = read(&file);
        assert_eq!(header["shard"], format!("{part}/3"));
        let vectors = vectors(&batch);
        rows.extend(paths(&batch).into_iter().zip(vectors.chunks_exact(32).map(<[f32]>::to_vec)));
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let wanted: Vec<_> = paths(&whole).into_iter().zip(vectors(&whole).chunks_exact(32).map(<[f32]>::to_vec)).collect();
    assert_eq!(rows, wanted);

    // More jobs than files: some have nothing to do, and say so with an empty file.
    let sizes: Vec<usize> = (0..200)
        .step_by(40)
        .map(|part| {
            let file = out(&format!("of-200-{part}.parquet"));
            said(&embed(&images, &file, &["--shard", &format!("{part}/200")]));
            read(&file).0.num_rows()
        })
        .collect();
    assert!(sizes.contains(&0), "{sizes:?}");
    let refused = embed(&images, &out("0.parquet"), &["--shard", "1/3"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("holds part 0/3"), "{}", text(&refused.stderr));
}

/// The parts of a run, with the times at which they were written.
fn parts(folder: &Path) -> Vec<(PathBuf, SystemTime)> {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    let mut parts: Vec<_> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("0000")))
        .map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap()))
        .collect();
    parts.sort();
    parts
}

#[test]
fn a_killed_run_goes_on_and_ends_in_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out, whole) = (folder.path().join("images"), folder.path().join("v.parquet"), folder.path().join("whole.parquet"));
    many_pictures(&images, 600);
    fs_err::write(images.join("even/broken.png"), "text").unwrap();
    said(&embed(&images, &whole, &[]));

    let start = || {
        let mut command = program();
        command.arg("embed").arg("--images").arg(&images).arg("--out").arg(&out).arg("--model").arg(model());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let half_done = folder.path().join(".v.parquet.parts");
    let mut running = start();
    while parts(&half_done).is_empty() {
        assert!(running.try_wait().unwrap().is_none(), "it ended before a part was seen");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // No other process writes the same file meanwhile.
    let second = embed(&images, &out, &[]);
    if running.try_wait().unwrap().is_none() {
        assert!(text(&second.stderr).contains("another process is writing"), "{}", text(&second.stderr));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    if !out.exists() {
        let before = parts(&half_done);
        assert!(!before.is_empty());
        // A part that is not whole is no part.
        fs_err::write(half_done.join(".part-torn"), "half").unwrap();
        // One that was cut is named, with what to do.
        let (part, _) = &before[0];
        let bytes = fs_err::read(part).unwrap();
        fs_err::write(part, &bytes[..4]).unwrap();
        let output = embed(&images, &out, &[]);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains(&format!("{}: it is damaged: delete it", part.display())), "{said}");
        fs_err::write(part, bytes).unwrap();
        let mut again = start();
        let status = again.wait().unwrap();
        assert!(status.success());
    }
    assert!(!half_done.exists());
    let ((found, header), (wanted, wanted_header)) = (read(&out), read(&whole));
    assert_eq!((found, &header["inputs"], &header["skipped"]), (wanted, &wanted_header["inputs"], &1.into()));

    // Nothing has changed: nothing is done. A picture has: its file is made anew.
    let before = fs_err::metadata(&out).unwrap().modified().unwrap();
    assert!(said(&embed(&images, &out, &[])).contains("is up to date; 1 files skipped"));
    assert_eq!(fs_err::metadata(&out).unwrap().modified().unwrap(), before);
    fs_err::copy(images.join("even/0000.png"), images.join("odd/0001.png")).unwrap();
    fs_err::write(images.join("odd/0003.png"), "no more").unwrap();
    assert!(said(&embed(&images, &out, &[])).contains("wrote 599 embeddings"));
    let (changed, _) = read(&out);
    let (paths, rows) = (paths(&changed), vectors(&changed));
    let row = |path: &str| paths.iter().position(|found| found == path).map(|row| rows[row * 32..][..32].to_vec());
    assert!(row("odd/0001.png") == row("even/0000.png") && row("odd/0003.png").is_none());
}

#[test]
fn listed_files_are_found_in_either_unicode_form() {
    const COMPOSED: &str = "Tür/Größe 1.jpg";
    const DECOMPOSED: &str = "Tu\u{308}r/Gro\u{308}ße 1.jpg";
    let folder = tempfile::tempdir().unwrap();
    for (stands, listed) in [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)] {
        let root = folder.path().join(stands.len().to_string());
        let (file, list, out) = (root.join(stands), root.join("list.txt"), root.join("v.parquet"));
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(&file, photo("flower.jpg")).unwrap();
        fs_err::write(&list, listed).unwrap();
        let output = embed(&list, &out, &[]);
        assert!(said(&output).contains("wrote 1 embeddings"));
        let stderr = text(&output.stderr);
        assert!(stderr.contains("found 1 files under another Unicode form of their name, the first: "), "{stderr}");
        assert_eq!(paths(&read(&out).0), [listed]);
        // It is the file that is found whose changes are seen.
        assert!(said(&embed(&list, &out, &[])).contains("is up to date; 0 files skipped"));
        fs_err::write(&file, photo("china.jpg")).unwrap();
        assert!(said(&embed(&list, &out, &[])).contains("wrote 1 embeddings"));
    }
}

#[test]
fn mistakes_are_named_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (images, out) = (folder.path().join("images"), folder.path().join("v.parquet"));
    wild_folder(&images);
    for (flags, file) in [
        (["--shard", "3/3"], &out),
        (["--shard", "x"], &out),
        (["--batch", "0"], &out),
        (["--dtype", "f64"], &out),
        (["--pooling", "max"], &out),
        (["--dtype", "f32"], &folder.path().join("v.txt")),
    ] {
        assert_eq!(embed(&images, file, &flags).status.code(), Some(2), "{flags:?}");
    }
    let other = other_model(folder.path());
    let fails = |images: &Path, out: &Path, model: &Path, word: &str| {
        let output = run(&["embed"], &[("--images", images), ("--out", out), ("--model", model)]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    };
    fails(&folder.path().join("none"), &out, &other, "none");
    fails(&images, &folder.path().join("none/v.parquet"), &other, "none");
    fails(&images, &out, &folder.path().join("none"), "manifest.json");
    let empty = folder.path().join("empty");
    fs_err::create_dir(&empty).unwrap();
    fails(&empty, &out, &other, "no file in");
    fs_err::write(empty.join("a.jpg"), "text").unwrap();
    fails(&empty, &out, &other, "no readable picture");
    assert!(!out.exists());
    // A file of another program is not overwritten.
    fs_err::write(&out, "something else").unwrap();
    fails(&images, &out, &other, "v.parquet");
    assert_eq!(fs_err::read(&out).unwrap(), b"something else");
    let npy = folder.path().join("v.npy");
    fs_err::write(&npy, "something else").unwrap();
    fails(&images, &npy, &other, "not written by embed");
}
