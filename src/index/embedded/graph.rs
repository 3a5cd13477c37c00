//! The approximate index: a hierarchical navigable small-world graph (Malkov and Yashunin 2016), by `hnsw_rs`.
//!
//! A graph belongs to one block of rows and never changes. It holds row numbers only: the vectors stay where they are,
//! in the block. What comes after it was built is scanned exactly beside it, until a new graph is due.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use hnsw_rs::prelude::{AnnT, Distance, Hnsw, HnswIo};
use indicatif::ProgressBar;
use rayon::prelude::*;

use super::rows::Rows;
use super::similarity::Similarity;

/// Links per node and layer. With this and the next number recall@20 is 0.99 at `ef` 128 on clustered vectors; half as many
/// again double the time to build for 0.005 more.
const LINKS: usize = 16;
/// Width of the search for links while building.
const EF_CONSTRUCTION: usize = 128;
/// Layers; the library saves graphs only with its own maximum.
const LAYERS: usize = 16;
/// The first nodes go in one by one: inserted all at once, they would not see each other.
const SERIAL_NODES: usize = 512;
/// Nodes per step of the progress bar.
const STEP: usize = 1024;
/// Width of the search that a node must be found with, after building.
const EF_CHECK: usize = 64;
/// Distance up to which two vectors count as the same in that check.
const SAME: f32 = 1e-6;
/// Base of the file names of a saved graph.
const FILE_BASE: &str = "links";

/// The files of a saved graph, relative to its folder.
pub(super) const FILES: [&str; 2] = ["links.hnsw.graph", "links.hnsw.data"];

pub(super) struct Graph {
    nodes: Hnsw<'static, u32, RowDistance>,
    /// Rows that a search for their own vector does not reach. The graph loses a few now and then; they are added to
    /// each answer, so that nothing stored is ever beyond reach.
    strays: Vec<u32>,
}

/// 1 - cosine similarity, never below 0. A node is its row number; a query is the bits of its vector.
struct RowDistance {
    rows: Arc<Rows>,
    similarity: Similarity,
}

impl RowDistance {
    fn vector<'a>(&'a self, value: &'a [u32]) -> &'a [f32] {
        match value {
            &[row] => self.rows.vector(row as usize),
            bits => bytemuck::cast_slice(bits),
        }
    }
}

impl Distance<u32> for RowDistance {
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        (1.0 - self.similarity.dot(self.vector(a), self.vector(b))).max(0.0)
    }
}

/// Whether rows of this dimension can have a graph: in one dimension a query would look like a row number (and two
/// directions need no index).
pub(super) fn possible(dim: usize) -> bool {
    dim > 1
}

impl Graph {
    /// Builds the graph over `rows` with all cores, two steps of `progress` a row.
    pub(super) fn build(rows: &Arc<Rows>, progress: &ProgressBar) -> Self {
        progress.set_length(2 * rows.len() as u64);
        let distance = RowDistance { rows: Arc::clone(rows), similarity: Similarity::default() };
        let nodes = Hnsw::new(LINKS, rows.len(), LAYERS, EF_CONSTRUCTION, distance);

        let numbers: Vec<u32> = (0..rows.len() as u32).collect();
        let (first, others) = numbers.split_at(SERIAL_NODES.min(numbers.len()));
        for row in first {
            nodes.insert((std::slice::from_ref(row), *row as usize));
        }
        for step in others.chunks(STEP) {
            step.par_iter().for_each(|row| nodes.insert((std::slice::from_ref(row), *row as usize)));
            progress.inc(step.len() as u64);
        }
        progress.set_position(rows.len() as u64);

        let mut graph = Self { nodes, strays: Vec::new() };
        graph.strays = numbers
            .par_chunks(STEP)
            .flat_map_iter(|step| {
                let strays: Vec<u32> = step.iter().copied().filter(|&row| !graph.reaches(rows, row)).collect();
                progress.inc(step.len() as u64);
                strays
            })
            .collect();
        graph
    }

    /// Whether a search for the row's own vector finds it, or as many that are just as near.
    fn reaches(&self, rows: &Rows, row: u32) -> bool {
        let query: &[u32] = bytemuck::cast_slice(rows.vector(row as usize));
        let found = self.nodes.search(query, EF_CHECK, EF_CHECK);
        let crowded = found.len() == EF_CHECK && found.iter().all(|hit| hit.distance <= SAME);
        crowded || found.iter().any(|hit| hit.d_id == row as usize)
    }

    /// About `ef` rows near a normalised query, in no promised order, none twice.
    pub(super) fn search(&self, query: &[f32], ef: usize) -> Vec<usize> {
        let hits = self.nodes.search(bytemuck::cast_slice(query), ef, ef);
        let mut rows: Vec<usize> = hits.into_iter().map(|hit| hit.d_id).collect();
        rows.extend(self.strays.iter().map(|&row| row as usize));
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// Rows that are compared with every query.
    pub(super) fn strays(&self) -> &[u32] {
        &self.strays
    }

    /// Writes [`FILES`] into `folder`.
    pub(super) fn save(&self, folder: &Path) -> Result<(), String> {
        // The library panics where it cannot create a file.
        match catch_unwind(AssertUnwindSafe(|| self.nodes.file_dump(folder, FILE_BASE))) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(panic) => Err(message(&*panic)),
        }
    }

    /// Reads what [`save`](Self::save) wrote for the same `rows`. The caller has checked that the files are whole: the
    /// library ends the process on some kinds of damage.
    pub(super) fn load(folder: &Path, rows: &Arc<Rows>, strays: Vec<u32>) -> Result<Self, String> {
        let distance = RowDistance { rows: Arc::clone(rows), similarity: Similarity::default() };
        // The loaded graph borrows its reader, for a memory map that is not used here. A reader is a path and a few
        // numbers, and a collection's graph is loaded once in a process: letting it live on costs nothing.
        let reader: &'static HnswIo = Box::leak(Box::new(HnswIo::new(folder, FILE_BASE)));
        let nodes = match catch_unwind(AssertUnwindSafe(|| reader.load_hnsw_with_dist(distance))) {
            Ok(Ok(nodes)) => nodes,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(panic) => return Err(message(&*panic)),
        };
        if nodes.get_nb_point() != rows.len() || strays.iter().any(|&row| row as usize >= rows.len()) {
            return Err("the graph does not fit its rows".to_owned());
        }
        Ok(Self { nodes, strays })
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("the graph library panicked").to_owned()
}
