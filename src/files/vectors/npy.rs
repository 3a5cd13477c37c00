//! Embeddings as a NumPy array, and what its rows are as JSON beside it.

use serde::{Deserialize, Serialize};

use super::parts::Parts;
use super::{Error, Header, Target, encoded, parse_header};
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

pub(super) fn write(target: &Target, header: &Header, parts: &Parts) -> Result<(), Error> {
    let mut beside = Beside { dino: header, paths: Vec::new(), labels: Vec::new(), sha256: Vec::new(), scales: Vec::new() };
    // The array's length stands before it and is known after it.
    for index in 0..parts.len() {
        for row in parts.load(index)?.rows {
            beside.paths.push(row.path);
            beside.labels.push(row.label);
            beside.sha256.push(row.sha256);
        }
    }
    let mut out = target.storage.create(&target.name)?;
    out.write_all(&npy_header(header.dtype.npy_descr(), &shape(header, beside.paths.len())))?;
    for index in 0..parts.len() {
        let part = parts.load(index)?;
        let encoded = encoded(header, part.rows.len(), part.vectors).map_err(|reason| Error::format(&target.shown(), reason))?;
        out.write_all(&encoded.to_le_bytes())?;
        beside.scales.extend(encoded.scales);
    }
    // An array of an earlier run must never stand beside this explanation: a run that is killed between the two leaves none.
    target.storage.delete(&target.name)?;
    let mut json = target.storage.create(&json_of(target))?;
    serde_json::to_writer(&mut json, &beside).map_err(|error| Error::Io(error.into()))?;
    json.finish()?;
    Ok(out.finish()?)
}

/// `[pictures, numbers]`, with the rows between them where a picture has several.
fn shape(header: &Header, pictures: usize) -> Vec<usize> {
    let stored = header.dtype.stored(header.dim);
    if header.rows == 1 { vec![pictures, stored] } else { vec![pictures, header.rows, stored] }
}

/// The header beside an array; `None` where there is none.
pub(super) fn header_beside(target: &Target) -> Result<Option<Header>, Error> {
    #[derive(Deserialize)]
    struct Found {
        dino: serde_json::Value,
    }
    let json = json_of(target);
    let Some(bytes) = target.storage.read(&json)? else { return Ok(None) };
    let found = serde_json::from_slice::<Found>(&bytes);
    found.ok().map(|found| parse_header(&target.storage.shown(&json), &found.dino.to_string())).transpose()
}

fn json_of(target: &Target) -> String {
    format!("{}.json", target.name)
}
