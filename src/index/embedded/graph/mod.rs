//! The approximate index: a hierarchical navigable small-world graph (Malkov and Yashunin 2016, "the paper" here).
//!
//! A graph belongs to one block of rows and never changes. It holds row numbers only: the vectors stay where they are,
//! in the block. What comes after it was built is scanned exactly beside it, until a new graph is due.

mod build;
mod links;
mod walk;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use parking_lot::Mutex;
use rayon::prelude::*;

use super::rows::Rows;
use build::STEP;
use links::Links;
use walk::{Scratch, Walk};

/// Width of the search that a node must be found with, after building.
const EF_CHECK: usize = 64;
/// Similarity from which two vectors count as the same in that check.
const SAME: f32 = 1.0 - 1e-6;

/// The file of a saved graph, relative to its folder.
pub(super) const FILE: &str = "links.bin";

pub(super) struct Graph {
    rows: Arc<Rows>,
    links: Links,
    /// Rows that a search for their own vector does not reach. A graph loses a few now and then; they are added to
    /// each answer, so that nothing stored is ever beyond reach.
    strays: Vec<u32>,
    /// As many as searches ran at a time.
    scratches: Mutex<Vec<Scratch>>,
}

impl Graph {
    /// Builds the graph over `rows` (at least one) with all cores, two steps of `progress` a row; `None` where it was told to stop.
    pub(super) fn build(rows: &Arc<Rows>, progress: &ProgressBar, stop: &AtomicBool) -> Option<Self> {
        progress.set_length(2 * rows.len() as u64);
        let links = build::build(rows, progress, stop)?;
        progress.set_position(rows.len() as u64);
        let mut graph = Self { rows: Arc::clone(rows), links, strays: Vec::new(), scratches: Mutex::default() };
        let numbers: Vec<u32> = (0..rows.len() as u32).collect();
        graph.strays = numbers
            .par_chunks(STEP)
            .flat_map_iter(|step| {
                let is_wanted = !stop.load(Ordering::Relaxed);
                let strays: Vec<u32> = step.iter().copied().filter(|&row| is_wanted && !graph.reaches(row)).collect();
                progress.inc(step.len() as u64);
                strays
            })
            .collect();
        (!stop.load(Ordering::Relaxed)).then_some(graph)
    }

    /// Whether a search for the row's own vector finds it, or as many that are just as near.
    fn reaches(&self, row: u32) -> bool {
        let found = self.search(self.rows.vector(row as usize), EF_CHECK);
        let crowded = found.len() >= EF_CHECK && found.iter().all(|&(_, similarity)| similarity >= SAME);
        crowded || found.iter().any(|&(found, _)| found == row as usize)
    }

    /// About `ef` rows near a normalised query with their similarities, in no promised order, none twice.
    pub(super) fn search(&self, query: &[f32], ef: usize) -> Vec<(usize, f32)> {
        let mut scratch = self.scratches.lock().pop().unwrap_or_default();
        let mut walk = Walk::new(&self.rows, query, &mut scratch);
        let mut from = walk.look(self.links.entry);
        for layer in self.links.upper() {
            from = walk.descend(&layer, from);
        }
        let mut found = walk.search(&self.links.bottom(), &[from], ef);
        let strays: Vec<_> =
            self.strays.iter().filter(|&&row| !found.iter().any(|found| found.node() == row)).map(|&row| walk.look(row)).collect();
        found.extend(strays);
        self.scratches.lock().push(scratch);
        found.into_iter().map(|found| (found.node() as usize, found.similarity())).collect()
    }

    /// Rows that are compared with every query.
    pub(super) fn strays(&self) -> &[u32] {
        &self.strays
    }

    /// Writes the content of [`FILE`].
    pub(super) fn save(&self, out: &mut impl Write) -> std::io::Result<()> {
        self.links.write_to(out)
    }

    /// Reads [`FILE`], which [`save`](Self::save) wrote for the same `rows`, from `folder`.
    pub(super) fn load(folder: &Path, rows: &Arc<Rows>, strays: Vec<u32>) -> Result<Self, String> {
        let bytes = fs_err::read(folder.join(FILE)).map_err(|error| error.to_string())?;
        let links = Links::from_bytes(&bytes, rows.len()).ok_or("the graph does not fit its rows")?;
        if strays.iter().any(|&row| row as usize >= rows.len()) {
            return Err("the graph does not fit its rows".to_owned());
        }
        Ok(Self { rows: Arc::clone(rows), links, strays, scratches: Mutex::default() })
    }
}
