//! Bulk work under the engines that distribute it, on this machine: `make test-cluster`. `cargo test --workspace` leaves these tests out, because
//! they need packages of Debian and take longer than others.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod arrow;
mod slurm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use image::{Rgb, RgbImage};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Ids and vectors.
type Rows = BTreeMap<String, Vec<f32>>;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dino-server");

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-model")
}

/// So many pictures that differ.
fn pictures(folder: &Path, count: usize) {
    fs_err::create_dir_all(folder).unwrap();
    for number in 0..count {
        let picture = RgbImage::from_fn(24, 24, |x, y| Rgb([(x * 10) as u8, (y * 10) as u8, (number * 37 % 256) as u8]));
        picture.save(folder.join(format!("{number:04}.png"))).unwrap();
    }
}

/// The rows of all Parquet files in a folder; none has a row of another.
fn rows(folder: &Path) -> Rows {
    let mut rows = Rows::new();
    let files = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.extension().is_some_and(|ending| ending == "parquet")) {
        let batches = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap().build().unwrap();
        for batch in batches.map(Result::unwrap) {
            let vectors = batch["embedding"].as_fixed_size_list();
            for (row, id) in batch["path"].as_string::<i32>().iter().enumerate() {
                let vector = vectors.value(row).as_primitive::<Float32Type>().values().to_vec();
                assert!(rows.insert(id.unwrap().to_owned(), vector).is_none(), "{id:?} twice");
            }
        }
    }
    rows
}
