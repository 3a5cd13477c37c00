//! Weights that a graph keeps in files beside it (ONNX external data).

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

use super::{ModelError, fingerprint};
use crate::links;

/// A file that holds weights, in memory.
#[derive(Clone, Debug)]
pub(super) struct DataFile {
    /// What the graph calls it.
    pub(super) name: String,
    pub(super) bytes: Arc<[u8]>,
}

/// The bytes of a graph and of the files beside it.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) graph: Vec<u8>,
    pub(super) data: Vec<DataFile>,
}

impl DataFile {
    /// Reads the file that the graph at `path` calls `name`. Links are followed: ONNX Runtime refuses those that lead out of the graph's
    /// folder, and in the cache of a hub every file is such a link.
    pub(super) fn read(path: &Path, name: &str) -> Result<Self, ModelError> {
        let file = place(path, name)?;
        let mut source = fs::File::open(&file)?;
        let length = source.metadata()?.len() as usize;
        // An error where there is no such memory: an `Arc` would end the program.
        Vec::<u8>::new().try_reserve_exact(length).map_err(std::io::Error::from)?;
        // Room for all of it at once, and no second copy.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
        source.read_exact(Arc::get_mut(&mut bytes).expect("it is shared with nothing yet"))?;
        Ok(Self { name: name.to_owned(), bytes })
    }

    /// SHA-256 in hex.
    pub(super) fn sha256(&self) -> String {
        fingerprint::sha256(&self.bytes)
    }
}

impl Loaded {
    /// Reads a graph and all that it names.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let graph = fs::read(path)?;
        let data = names(&graph).iter().map(|name| DataFile::read(path, name)).collect::<Result<_, _>>()?;
        Ok(Self { graph, data })
    }
}

/// Whether ONNX Runtime may refuse to read the files of a graph by itself, because one of them is a link. An error says which is missing.
pub(super) fn is_linked(path: &Path, graph: &[u8]) -> Result<bool, ModelError> {
    let names = names(graph);
    let mut linked = !names.is_empty() && path.is_symlink();
    for name in names {
        linked |= place(path, &name)?.is_symlink();
    }
    Ok(linked)
}

/// Where the file is that the graph at `path` calls `name`.
fn place(path: &Path, name: &str) -> Result<PathBuf, ModelError> {
    let reject = |reason: String| ModelError::Data { path: path.to_owned(), name: name.to_owned(), reason };
    let file = beside(path, name).map_err(reject)?;
    if let Some(reason) = links::broken(&file) {
        return Err(reject(reason));
    }
    if !file.is_file() {
        let reason = format!("{} is not there: copy it beside the ONNX file, both belong together", file.display());
        return Err(reject(reason));
    }
    Ok(file)
}

/// A file that an ONNX file names; only ones below the same folder are read.
pub(super) fn beside(path: &Path, location: &str) -> Result<PathBuf, String> {
    let inside = !location.is_empty() && Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err("that does not lie beside it: write the model again with its data file in the same folder".to_owned());
    }
    Ok(path.parent().unwrap_or(Path::new("")).join(location))
}

// Field numbers of onnx.proto.
const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const EXTERNAL_DATA: u64 = 13;
const KEY: u64 = 1;
const VALUE: u64 = 2;

/// Names of the data files of a graph's weights. Of a message of fixed depth: bytes of strangers are looked at here before ONNX Runtime's
/// parser, which bounds how deeply they nest.
fn names(model: &[u8]) -> BTreeSet<String> {
    let of = |field| move |(number, content)| (number == field).then_some(content);
    fields(model)
        .filter_map(of(GRAPH))
        .flat_map(fields)
        .filter_map(of(INITIALIZER))
        .flat_map(fields)
        .filter_map(of(EXTERNAL_DATA))
        .filter(|entry| fields(entry).any(|field| field == (KEY, b"location")))
        .filter_map(|entry| fields(entry).find_map(of(VALUE)))
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// Number and content of each field of bytes of a message, up to where it is malformed.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut message)?;
            let skipped = match key & 7 {
                0 => varint(&mut message).map(|_| 0)?,
                1 => 8,
                2 => {
                    let length = usize::try_from(varint(&mut message)?).ok()?;
                    let (content, rest) = message.split_at_checked(length)?;
                    message = rest;
                    return Some((key >> 3, content));
                }
                5 => 4,
                _ => return None,
            };
            message = message.get(skipped..)?;
        }
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Some(value);
        }
    }
    None
}
