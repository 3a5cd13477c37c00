//! Repositories of the hub.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use fs_err as fs;
use serde_json::{Value as Json, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// Endings of files that git keeps as pointers.
const LARGE: [&str; 8] = [".safetensors", ".bin", ".onnx", ".onnx_data", ".pth", ".pt", ".ckpt", ".data"];

/// Who may read a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    #[default]
    Public,
    /// Everyone may see it, and those read it who have accepted its conditions.
    Gated,
    /// Its members alone see it.
    Private,
}

/// A repository at one commit.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) access: Access,
    pub(crate) card: Json,
    /// Names that the list of files has besides.
    pub(crate) phantoms: Vec<String>,
}

impl Repository {
    /// An empty one.
    pub fn new() -> Self {
        Self { card: json!({}), ..Self::default() }
    }

    /// All files below a folder.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn of_folder(folder: &Path) -> Self {
        let mut repository = Self::new();
        for entry in WalkDir::new(folder).follow_links(true).into_iter().filter_map(Result::ok) {
            if entry.file_type().is_file() {
                let path = entry.path().strip_prefix(folder).expect("the walk began there");
                let bytes = fs::read(entry.path()).expect("files of tests can be read");
                repository.files.insert(path.to_str().expect("names of tests are UTF-8").to_owned(), bytes);
            }
        }
        repository
    }

    /// With this file.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.to_owned(), bytes.into());
        self
    }

    /// For these readers.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// With this card: the YAML at the top of its `README.md`, as JSON.
    #[must_use]
    pub fn card(mut self, card: Json) -> Self {
        self.card = card;
        self
    }

    /// With this name in the list of files, and no such file.
    #[must_use]
    pub fn phantom(mut self, path: &str) -> Self {
        self.phantoms.push(path.to_owned());
        self
    }

    /// Its commit: another one for other files.
    pub fn commit(&self) -> String {
        let mut hash = Sha1::new();
        for (path, bytes) in &self.files {
            hash.update(format!("{path}\0{}\n", git(bytes)));
        }
        hex(&hash.finalize())
    }

    /// The list of files, as `/api/models` has it.
    pub(crate) fn siblings(&self, names_alone: bool) -> Vec<Json> {
        let file = |(path, bytes): (&String, &Vec<u8>)| {
            if names_alone {
                return json!({"rfilename": path});
            }
            let mut file = json!({"rfilename": path, "size": bytes.len(), "blobId": git(&stored(path, bytes))});
            if is_large(path) {
                file["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": pointer(bytes).len()});
            }
            file
        };
        let phantoms = self.phantoms.iter().map(|path| json!({"rfilename": path, "size": 1, "blobId": "0".repeat(40)}));
        self.files.iter().map(file).chain(phantoms).collect()
    }

    /// The list of files, as `/api/models/…/tree` has it.
    pub(crate) fn tree(&self) -> Vec<Json> {
        let file = |(path, bytes): (&String, &Vec<u8>)| {
            let mut file = json!({"type": "file", "path": path, "size": bytes.len(), "oid": git(&stored(path, bytes))});
            if is_large(path) {
                file["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len(), "pointerSize": pointer(bytes).len()});
            }
            file
        };
        self.files.iter().map(file).collect()
    }
}

/// Whether git keeps a pointer to this file.
pub(crate) fn is_large(path: &str) -> bool {
    LARGE.iter().any(|end| path.ends_with(end))
}

/// The entity tag of a file.
pub(crate) fn etag(path: &str, bytes: &[u8]) -> String {
    if is_large(path) { sha256(bytes) } else { git(bytes) }
}

/// What git itself keeps of a file.
fn stored(path: &str, bytes: &[u8]) -> Vec<u8> {
    if is_large(path) { pointer(bytes) } else { bytes.to_vec() }
}

/// The pointer to a large file.
pub(crate) fn pointer(bytes: &[u8]) -> Vec<u8> {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n", sha256(bytes), bytes.len()).into_bytes()
}

/// SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The name that git gives a blob.
fn git(bytes: &[u8]) -> String {
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("strings take every write");
        hex
    })
}
