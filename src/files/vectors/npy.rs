//! Embeddings as a NumPy array, and what its rows are as JSON beside it.

use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parts::Parts;
use super::{Error, Header, encoded, parse_header, replace};
use crate::encoding::npy_header;

/// Content of the file beside the array: one entry per row of it.
#[derive(Serialize)]
struct Beside<'a> {
    dino: &'a Header,
    paths: Vec<String>,
    labels: Vec<Option<String>>,
    sha256: Vec<String>,
    /// For int8: what each row of numbers is to be multiplied with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scales: Vec<f32>,
}

pub(super) fn write(path: &Path, header: &Header, parts: &Parts) -> Result<(), Error> {
    let mut beside = Beside { dino: header, paths: Vec::new(), labels: Vec::new(), sha256: Vec::new(), scales: Vec::new() };
    replace(path, |out| {
        // The array's length stands before it and is known after it.
        for index in 0..parts.len() {
            for row in parts.load(index)?.rows {
                beside.paths.push(row.path);
                beside.labels.push(row.label);
                beside.sha256.push(row.sha256);
            }
        }
        out.write_all(&npy_header(header.dtype.npy_descr(), &shape(header, beside.paths.len())))?;
        for index in 0..parts.len() {
            let part = parts.load(index)?;
            let encoded = encoded(header, part.rows.len(), part.vectors).map_err(|reason| Error::format(path, reason))?;
            out.write_all(&encoded.to_le_bytes())?;
            beside.scales.extend(encoded.scales);
        }
        // First what explains the array, then the array.
        replace(&json_of(path), |out| serde_json::to_writer(out, &beside).map_err(|error| Error::Io(error.into())))
    })
}

/// `[pictures, numbers]`, with the rows between them where a picture has several.
fn shape(header: &Header, pictures: usize) -> Vec<usize> {
    let stored = header.dtype.stored(header.dim);
    if header.rows == 1 { vec![pictures, stored] } else { vec![pictures, header.rows, stored] }
}

/// The header beside an array; `None` where there is none.
pub(super) fn header_of(path: &Path) -> Result<Option<Header>, Error> {
    #[derive(Deserialize)]
    struct Found {
        dino: serde_json::Value,
    }
    let json = json_of(path);
    if !json.try_exists()? {
        return Ok(None);
    }
    let found = serde_json::from_reader::<_, Found>(BufReader::new(fs_err::File::open(&json)?));
    found.ok().map(|found| parse_header(&json, &found.dino.to_string())).transpose()
}

fn json_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}
