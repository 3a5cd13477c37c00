//! Graphs on the disk: one folder per collection number, derived from the database and never needed.
//!
//! A graph is saved right after it was built and not touched again. Its rows go with it, also those that die later, so
//! that a restart finds the very same graph and gives the same answers. A folder that is torn, of another version or
//! damaged only costs a rebuild.

use std::collections::HashMap;
use std::io::{BufReader, BufWriter, IntoInnerError, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::checksum::{self, Summing};
use super::graph::{FILE, Graph};
use super::rows::Rows;

/// Folder of all graphs in the data folder.
const FOLDER: &str = "graphs";
/// What describes a saved graph; written last.
const DESCRIPTION: &str = "graph.json";
/// Sequence numbers (u64) of the rows, then their vectors (f32), little-endian.
const ROWS: &str = "rows.bin";
/// Bytes of a file that are read or written at once.
const READ_BYTES: usize = 1 << 18;
const MISFIT: &str = "it does not fit what is stored";
/// Version of the folder's content.
const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Description {
    format: u32,
    dim: usize,
    rows: usize,
    /// Rows of the graph that no search reaches. Earlier versions wrote the same under another name.
    #[serde(alias = "strays")]
    unreachable: Vec<u32>,
    /// SHA-256 of every other file, in hex.
    files: HashMap<String, String>,
}

/// The graphs of one store.
pub(super) struct GraphFiles {
    folder: PathBuf,
}

impl GraphFiles {
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
    pub(super) fn save(&self, collection: u64, graph: &Graph) -> Result<(), String> {
        let rows = graph.rows();
        let io = |error: std::io::Error| error.to_string();
        fs_err::create_dir_all(&self.folder).map_err(io)?;
        let temporary = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.folder).map_err(io)?;
        let mut files = HashMap::new();
        files.insert(FILE.to_owned(), write(&temporary.path().join(FILE), |out| graph.save(out)).map_err(io)?);
        files.insert(ROWS.to_owned(), write(&temporary.path().join(ROWS), |out| write_rows(rows, out)).map_err(io)?);
        let unreachable = graph.unreachable().to_owned();
        let description = Description { format: FORMAT, dim: rows.dim, rows: rows.len(), unreachable, files };
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

    /// The saved graph of a collection, its files compared with their checksums.
    ///
    /// Returns `None` where no graph was saved, or it has fewer than `exact_below` rows, and the reason where the saved one cannot
    /// be used.
    pub(super) fn open(&self, collection: u64, dim: usize, exact_below: usize) -> Result<Option<Saved>, String> {
        let io = |error: std::io::Error| error.to_string();
        let folder = self.of(collection);
        let Ok(json) = fs_err::read(folder.join(DESCRIPTION)) else {
            return Ok(None);
        };
        let description: Description = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        if description.rows < exact_below {
            return Ok(None);
        }
        if description.format != FORMAT || description.dim != dim {
            return Err("it is of another version".to_owned());
        }
        for name in [FILE, ROWS] {
            let found = checksum::of_file(&folder.join(name)).map_err(io)?;
            if description.files.get(name) != Some(&found) {
                return Err(format!("{name} is damaged"));
            }
        }
        // Memory is taken for as many rows as the file holds, whatever the description says.
        let row_bytes = dim as u64 * 4 + 8;
        let file = fs_err::File::open(folder.join(ROWS)).map_err(io)?;
        if (description.rows as u64).checked_mul(row_bytes) != Some(file.metadata().map_err(io)?.len()) {
            return Err(MISFIT.to_owned());
        }
        let mut rows = BufReader::with_capacity(READ_BYTES, file);
        let mut sequences = Vec::with_capacity(description.rows);
        let mut number = [0; 8];
        for _ in 0..description.rows {
            rows.read_exact(&mut number).map_err(io)?;
            sequences.push(u64::from_le_bytes(number));
        }
        if !sequences.is_sorted_by(|a, b| a < b) {
            return Err(MISFIT.to_owned());
        }
        Ok(Some(Saved { folder, sequences, vectors: rows, unreachable: description.unreachable }))
    }
}

/// A saved graph whose files are whole.
pub(super) struct Saved {
    folder: PathBuf,
    /// Of its rows, ascending.
    pub(super) sequences: Vec<u64>,
    /// What is left of [`ROWS`]: the vectors.
    vectors: BufReader<fs_err::File>,
    unreachable: Vec<u32>,
}

impl Saved {
    /// Completes `rows`, which have the sequence numbers of this and the vectors of those that are `alive`, and lays its graph
    /// over them. The reason where they contradict it, for example after the database was put back from a backup.
    pub(super) fn lay_over(mut self, mut rows: Rows, alive: &[bool]) -> Result<(Arc<Rows>, Graph), String> {
        let io = |error: std::io::Error| error.to_string();
        let mut bytes = vec![0; rows.dim * 4];
        for (row, &alive) in alive.iter().enumerate() {
            self.vectors.read_exact(&mut bytes).map_err(io)?;
            let saved = bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number));
            if alive {
                if !rows.vector(row).iter().copied().eq(saved) {
                    return Err(MISFIT.to_owned());
                }
            } else {
                rows.vector_mut(row).iter_mut().zip(saved).for_each(|(number, saved)| *number = saved);
            }
        }
        drop(self.vectors);
        let rows = Arc::new(rows);
        let graph = Graph::load(&self.folder, &rows, self.unreachable)?;
        Ok((rows, graph))
    }
}

/// Writes a file piece by piece and makes it durable; returns its checksum.
fn write(path: &Path, write: impl FnOnce(&mut BufWriter<Summing<fs_err::File>>) -> std::io::Result<()>) -> std::io::Result<String> {
    let mut out = BufWriter::with_capacity(READ_BYTES, Summing::new(fs_err::File::create(path)?));
    write(&mut out)?;
    let (file, sum) = out.into_inner().map_err(IntoInnerError::into_error)?.finish()?;
    file.sync_all()?;
    Ok(sum)
}

/// Writes the content of [`ROWS`].
fn write_rows(rows: &Rows, out: &mut impl Write) -> std::io::Result<()> {
    rows.sequences.iter().try_for_each(|sequence| out.write_all(&sequence.to_le_bytes()))?;
    rows.floats().iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
}
