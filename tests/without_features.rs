//! The program as `make serve` builds it: it says what it lacks, and how to get it.
#![cfg(not(any(feature = "object-store", feature = "parquet", feature = "postgres")))]
#![expect(clippy::unwrap_used, reason = "helpers of tests, as the tests themselves")]

use std::path::Path;
use std::process::{Command, Output};

const MODEL: &str = "tests/data/tiny-model";

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dino-server")).args(arguments).output().unwrap()
}

/// Why the arguments are refused.
fn refused(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("`cargo build --release`"), "{stderr}");
    stderr
}

#[test]
fn parquet_files_are_refused_before_anything_is_read_or_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (file, data) = (path("v.parquet"), path("data"));
    // The vectors of such a table need no model.
    for arguments in
        [&["embed", "--images", "tests/photos", "--model", MODEL, "--out", &file], &["import", "--table", &file, "--data-dir", &data][..]]
    {
        assert!(refused(arguments, 2).contains("feature `parquet`"));
    }
    assert!(!Path::new(&file).exists() && !Path::new(&data).exists());
}

#[test]
fn databases_are_refused_without_their_passwords() {
    let url = "postgres://user:sEcret@localhost/db";
    for arguments in
        [&["serve", "--model", MODEL, "--index", url], &["import", "--images", "tests/photos", "--index", url, "--model", MODEL][..]]
    {
        let stderr = refused(arguments, 1);
        assert!(stderr.contains("feature `postgres`") && !stderr.contains("sEcret"), "{stderr}");
    }
}

#[test]
fn object_storage_and_rows_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("v.npy").display().to_string();
    let embed = |images: &str, out: &str, code| refused(&["embed", "--images", images, "--model", MODEL, "--out", out], code);
    assert!(embed("s3://bucket/pictures/", &out, 1).contains("feature `object-store`"));
    assert!(embed("tests/photos", "s3://bucket/v.npy", 2).contains("feature `object-store`"));
    assert!(embed("rows.arrow", &out, 1).contains("feature `parquet`"));
    assert!(refused(&["embed", "--arrow", "-", "--model", MODEL], 1).contains("feature `parquet`"));
}

#[test]
fn numpy_files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (images, out) = (path("images"), path("v.npy"));
    fs_err::create_dir(&images).unwrap();
    fs_err::copy("tests/photos/china.jpg", Path::new(&images).join("china.jpg")).unwrap();
    let output = run(&["embed", "--model", MODEL, "--images", &images, "--out", &out]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(Path::new(&out).exists());
}
