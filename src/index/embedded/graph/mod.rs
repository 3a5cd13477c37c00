//! The approximate index: a hierarchical navigable small-world graph (Malkov and Yashunin 2016, "the paper" here).
//!
//! `hnsw_rs` builds the graph ([`build`]). Searches walk a compact copy of its links ([`links`], [`walk`]), over the vectors of the
//! collection.
//!
//! A graph belongs to one block of rows and never changes. It holds row numbers only: the vectors stay where they are,
//! in the block. Rows that are written later are scanned exactly beside it, until a new graph is due.

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

use super::layout::{Layout, whole};
use super::rows::Rows;
use build::STEP;
use links::Links;
use walk::{Found, Scratch, Walk};

/// Width of the search on the layer above the bottom.
const EF_ENTRY: usize = 12;
/// Width of the search that a row must be found with, after building.
const EF_CHECK: usize = 64;
/// Similarity from which two vectors count as the same in that check.
const SAME: f32 = 1.0 - 1e-6;

/// The file of a saved graph, relative to its folder.
pub(super) const FILE: &str = "links.bin";

pub(super) struct Graph {
    rows: Arc<Rows>,
    links: Links,
    /// Rows that a search for their own vector does not reach. `hnsw_rs` leaves a few without a link to them: a row whose
    /// neighbours all have nearer ones, or that one thread inserted while another one linked its neighbours. They are compared
    /// with every query, so that every stored row can be found.
    unreachable: Vec<u32>,
    /// One for each search that ran at the same time.
    scratches: Mutex<Vec<Scratch>>,
}

impl Graph {
    /// Builds the graph over the live rows of `layout`, of `dim` dimensions, with all threads of the current pool, and two steps
    /// of `progress` a row; `None` where `stop` was set.
    pub(super) fn build(layout: Arc<Layout>, dim: usize, progress: &ProgressBar, stop: &AtomicBool) -> Option<Self> {
        progress.set_length(2 * layout.len() as u64);
        let segments = layout.0.iter();
        let vectors: Vec<&[f32]> = segments.flat_map(|segment| segment.live_rows().map(|row| segment.rows.vector(row))).collect();
        let links = build::links_of(&vectors, progress, stop)?;
        drop(vectors);
        // The library's graph is freed by now: it and a copy of the vectors are never in memory together.
        let rows = whole(&layout.0, dim);
        drop(layout);
        Self::checked(rows, links, progress, stop)
    }

    /// A graph of these links, whose unreachable rows are known; `None` where `stop` was set.
    fn checked(rows: Arc<Rows>, links: Links, progress: &ProgressBar, stop: &AtomicBool) -> Option<Self> {
        let numbers: Vec<u32> = (0..rows.len() as u32).collect();
        let graph = Self { rows, links, unreachable: Vec::new(), scratches: Mutex::default() };
        let steps = numbers.par_chunks(STEP).map(|step| {
            let unreachable: Vec<u32> = step.iter().copied().filter(|&row| !graph.reaches(row)).collect();
            progress.inc(step.len() as u64);
            (!stop.load(Ordering::Relaxed)).then_some(unreachable)
        });
        let unreachable = steps.collect::<Option<Vec<_>>>()?.concat();
        Some(Self { unreachable, ..graph })
    }

    /// Whether a search for the row's own vector finds it, or as many that are just as near.
    fn reaches(&self, row: u32) -> bool {
        let found = self.search(self.rows.vector(row as usize), EF_CHECK);
        let crowded = found.len() >= EF_CHECK && found.iter().all(|&(_, similarity)| similarity >= SAME);
        crowded || found.iter().any(|&(found, _)| found == row as usize)
    }

    /// The nodes from which the bottom layer is searched. On the layer above it that is a search of its own: the library keeps the
    /// nearest links of a node only, so that the single nearest node of a greedy walk often leads to the wrong cluster.
    fn enter(&self, walk: &mut Walk<'_>) -> Vec<Found> {
        let mut from = walk.look(self.links.entry);
        let mut layers = self.links.upper().peekable();
        while let Some(layer) = layers.next() {
            if layers.peek().is_none() {
                return walk.search(&layer, &[from], EF_ENTRY);
            }
            from = walk.descend(&layer, from);
        }
        vec![from]
    }

    /// About `ef` rows near a normalised query with their similarities, in no promised order, none twice.
    pub(super) fn search(&self, query: &[f32], ef: usize) -> Vec<(usize, f32)> {
        let mut scratch = self.scratches.lock().pop().unwrap_or_default();
        let mut walk = Walk::new(&self.rows, query, &mut scratch);
        let from = self.enter(&mut walk);
        let mut found = walk.search(&self.links.bottom(), &from, ef);
        let unreachable = self.unreachable.iter().filter(|&&row| !found.iter().any(|found| found.node() == row));
        let unreachable: Vec<_> = unreachable.map(|&row| walk.look(row)).collect();
        found.extend(unreachable);
        self.scratches.lock().push(scratch);
        found.into_iter().map(|found| (found.node() as usize, found.similarity())).collect()
    }

    /// The rows that it was built over.
    pub(super) fn rows(&self) -> &Arc<Rows> {
        &self.rows
    }

    /// Rows that are compared with every query, since no search reaches them.
    pub(super) fn unreachable(&self) -> &[u32] {
        &self.unreachable
    }

    /// Writes the content of [`FILE`].
    pub(super) fn save(&self, out: &mut impl Write) -> std::io::Result<()> {
        self.links.write_to(out)
    }

    /// Reads [`FILE`], which [`save`](Self::save) wrote for the same `rows`, from `folder`.
    pub(super) fn load(folder: &Path, rows: &Arc<Rows>, unreachable: Vec<u32>) -> Result<Self, String> {
        let bytes = fs_err::read(folder.join(FILE)).map_err(|error| error.to_string())?;
        let links = Links::from_bytes(&bytes, rows.len()).ok_or("the graph does not fit its rows")?;
        if unreachable.iter().any(|&row| row as usize >= rows.len()) {
            return Err("the graph does not fit its rows".to_owned());
        }
        Ok(Self { rows: Arc::clone(rows), links, unreachable, scratches: Mutex::default() })
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::super::VectorFormat;
    use super::*;

    const DIM: usize = 16;

    fn rows_of(vectors: impl Iterator<Item = Vec<f32>>) -> Arc<Rows> {
        let mut rows = Rows::with_capacity(DIM, 0, VectorFormat::F32);
        for (sequence, vector) in (0..).zip(vectors) {
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            rows.push(sequence, Arc::default(), &vector.into_iter().map(|x| x / length).collect::<Vec<_>>());
        }
        Arc::new(rows)
    }

    fn build(rows: &Arc<Rows>) -> Graph {
        let layout = Arc::new(Layout::plain(Arc::clone(rows)));
        Graph::build(layout, DIM, &ProgressBar::hidden(), &AtomicBool::new(false)).unwrap()
    }

    fn finds(graph: &Graph, row: usize) -> bool {
        let found = graph.search(graph.rows.vector(row), EF_CHECK);
        let as_near = found.iter().filter(|&&(_, similarity)| similarity >= SAME).count();
        as_near >= EF_CHECK || found.iter().any(|&(found, _)| found == row)
    }

    /// Dense clusters, copies, and single rows far from all others: the library keeps the nearest links of a row only, so that
    /// nothing may link to those.
    #[test]
    fn every_row_is_found_by_its_own_vector() {
        let mut rng = StdRng::seed_from_u64(41);
        let mut random =
            |around: &[f32], spread: f32| -> Vec<f32> { around.iter().map(|x| x + spread * (rng.random::<f32>() - 0.5)).collect() };
        let centres: Vec<Vec<f32>> = (0..8).map(|_| random(&[0.0; DIM], 1.0)).collect();
        let clusters: Vec<Vec<f32>> = (0..4000).map(|row| random(&centres[row % 8], 0.02)).collect();
        let copies = vec![centres[0].clone(); 200];
        let alone: Vec<Vec<f32>> = (0..100).map(|_| random(&[0.0; DIM], 1.0)).collect();
        let rows = rows_of(clusters.into_iter().chain(copies).chain(alone));
        let graph = build(&rows);
        println!("{} of {} rows are unreachable", graph.unreachable.len(), rows.len());
        let lost: Vec<usize> = (0..rows.len()).filter(|&row| !finds(&graph, row)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    /// A graph in which no link leads to half of the rows.
    #[test]
    fn rows_without_a_link_to_them_are_noticed_and_found() {
        let rows = rows_of((0..200).map(|row| (0..DIM).map(|at| ((row * 31 + at * at * 7 + 1) as f32).sin()).collect()));
        let neighbours = |row: u32| (0..100_u32).filter(|&other| other != row).take(32).collect::<Vec<_>>();
        let links = Links::new(0, (0..200).map(|row| vec![neighbours(row)]));
        let graph = Graph::checked(Arc::clone(&rows), links, &ProgressBar::hidden(), &AtomicBool::new(false)).unwrap();
        assert!((100..200).all(|row| graph.unreachable.contains(&row)), "{:?}", graph.unreachable);
        assert!((0..200).all(|row| finds(&graph, row)));
        // Each once, whether the walk meets it or not.
        let mut found: Vec<usize> = graph.search(rows.vector(150), 300).into_iter().map(|(row, _)| row).collect();
        found.sort_unstable();
        assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
    }
}
