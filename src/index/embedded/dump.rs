//! Graphs on the disk: one folder per collection number, derived from the database and never needed.
//!
//! A graph is saved right after it was built and not touched again. Its rows go with it, also those that die later, so
//! that a restart finds the very same graph and gives the same answers. A folder that is torn, of another version or
//! damaged only costs a rebuild.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checksum;
use super::graph::{FILES, Graph};
use super::item::{Item, vector_from_bytes, vector_to_bytes};
use super::rows::{Layout, Rows};

/// Folder of all graphs in the data folder.
const FOLDER: &str = "graphs";
/// What describes a saved graph; written last.
const DESCRIPTION: &str = "graph.json";
/// Sequence numbers (u64) of the rows, then their vectors (f32), little-endian.
const ROWS: &str = "rows.bin";
/// Version of the folder's content.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Description {
    format: u32,
    dim: usize,
    rows: usize,
    strays: Vec<u32>,
    /// SHA-256 of every other file, in hex.
    files: HashMap<String, String>,
}

/// The graphs of one store.
pub(super) struct Dumps {
    folder: PathBuf,
}

impl Dumps {
    pub(super) fn new(data: &Path) -> Self {
        Self { folder: data.join(FOLDER) }
    }

    /// Deletes what belongs to none of `collections`: left behind by a process that ended while it saved a graph, or by
    /// a collection that was deleted while one was built.
    pub(super) fn tidy(&self, collections: &[u64]) {
        let kept: Vec<PathBuf> = collections.iter().map(|&collection| self.of(collection)).collect();
        let entries = fs_err::read_dir(&self.folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !kept.contains(&entry.path())) {
            if let Err(error) = fs_err::remove_dir_all(entry.path()) {
                tracing::warn!("{error}");
            }
        }
    }

    /// Whether any graph was ever saved here.
    pub(super) fn exist(&self) -> bool {
        fs_err::read_dir(&self.folder).is_ok_and(|mut entries| entries.next().is_some())
    }

    fn of(&self, collection: u64) -> PathBuf {
        self.folder.join(collection.to_string())
    }

    /// Saves the graph of a collection in place of the one before.
    pub(super) fn save(&self, collection: u64, rows: &Rows, graph: &Graph) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        fs_err::create_dir_all(&self.folder).map_err(io)?;
        let temporary = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.folder).map_err(io)?;
        graph.save(temporary.path())?;
        let mut bytes: Vec<u8> = rows.sequences.iter().flat_map(|sequence| sequence.to_le_bytes()).collect();
        bytes.extend(vector_to_bytes(&rows.vectors));
        fs_err::write(temporary.path().join(ROWS), bytes).map_err(io)?;

        let mut files = HashMap::new();
        for name in FILES.into_iter().chain([ROWS]) {
            let path = temporary.path().join(name);
            fs_err::File::open(&path).and_then(|file| file.sync_all()).map_err(io)?;
            files.insert(name.to_owned(), checksum::of_file(&path).map_err(io)?);
        }
        let strays = graph.strays().to_owned();
        let description = Description { format: FORMAT, dim: rows.dim, rows: rows.len(), strays, files };
        let json = serde_json::to_vec_pretty(&description).map_err(|error| error.to_string())?;
        fs_err::write(temporary.path().join(DESCRIPTION), json).map_err(io)?;

        self.remove(collection).map_err(io)?;
        fs_err::rename(temporary.keep(), self.of(collection)).map_err(io)
    }

    /// Forgets the graph of a collection, if there is one.
    pub(super) fn remove(&self, collection: u64) -> std::io::Result<()> {
        match fs_err::remove_dir_all(self.of(collection)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Lays `live`, all that a collection holds, out over its saved graph.
    ///
    /// Returns `None` where no graph was saved or where it has fewer than `exact_below` rows, and the reason where the saved one cannot be used.
    pub(super) fn lay_out(&self, collection: u64, live: &Arc<Rows>, exact_below: usize) -> Result<Option<Layout>, String> {
        let folder = self.of(collection);
        let Ok(json) = fs_err::read(folder.join(DESCRIPTION)) else {
            return Ok(None);
        };
        let saved: Description = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        if saved.rows < exact_below {
            return Ok(None);
        }
        if saved.format != FORMAT || saved.dim != live.dim {
            return Err("it is of another version".to_owned());
        }
        for name in FILES.into_iter().chain([ROWS]) {
            let found = checksum::of_file(&folder.join(name)).map_err(|error| error.to_string())?;
            if saved.files.get(name) != Some(&found) {
                return Err(format!("{name} is damaged"));
            }
        }
        let bytes = fs_err::read(folder.join(ROWS)).map_err(|error| error.to_string())?;
        let indexed = read_rows(&bytes, &saved, live).ok_or("it does not fit what is stored")?;
        let indexed = Arc::new(indexed);
        let graph = Arc::new(Graph::load(&folder, &indexed, saved.strays)?);
        let layout = Layout::plain(Arc::clone(live));
        Ok(Some(layout.with_indexed(&indexed, graph).ok_or("it does not fit what is stored")?))
    }
}

/// The rows of a saved graph, with the items of those that still live; `None` where they contradict what is stored,
/// for example after the database was put back from a backup.
fn read_rows(bytes: &[u8], saved: &Description, live: &Rows) -> Option<Rows> {
    let row_bytes = saved.dim.checked_mul(4)?.checked_add(8)?;
    if saved.rows.checked_mul(row_bytes)? != bytes.len() {
        return None;
    }
    let (sequences, vectors) = bytes.split_at(saved.rows * 8);
    let gone = Arc::new(Item::default());
    let mut rows = Rows::with_capacity(saved.dim, saved.rows);
    for (sequence, vector) in sequences.chunks_exact(8).zip(vectors.chunks_exact(saved.dim * 4)) {
        let sequence = u64::from_le_bytes(sequence.try_into().ok()?);
        let vector = vector_from_bytes(vector);
        let item = match live.row_of(sequence) {
            Some(row) if live.vector(row) == vector => Arc::clone(&live.items[row]),
            Some(_) => return None,
            None => Arc::clone(&gone),
        };
        rows.push(sequence, item, &vector);
    }
    rows.sequences.is_sorted_by(|a, b| a < b).then_some(rows)
}
