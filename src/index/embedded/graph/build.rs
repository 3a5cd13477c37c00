//! Building a graph with `hnsw_rs`: levels, insertion and the choice of neighbours are the library's.
//!
//! The library keeps one number sequence for each point. Here that is a single reference to a vector, so that no vector is
//! copied. Beside the vectors a build takes 2.0 to 3.3 KB a row with 16 links (BENCHMARKS.md); all of that is freed before [`links_of`]
//! returns, also where the build was stopped.

use std::sync::atomic::{AtomicBool, Ordering};

use hnsw_rs::anndists::dist::distances::Distance;
use hnsw_rs::hnsw::{Hnsw, Point};
use indicatif::ProgressBar;
use rayon::prelude::*;

use super::links::{LINKS, Links};
use crate::index::embedded::similarity::Similarity;

/// Width of the search for links. With this and [`LINKS`] recall and time are measured in BENCHMARKS.md.
const EF_CONSTRUCTION: usize = 64;
/// Layers that the library may use: its own limit, which no collection reaches.
const LAYERS: usize = 16;
/// The first rows are inserted by one thread: those that are inserted at the same time do not find each other.
const SERIAL_ROWS: usize = 512;
/// Rows between two looks at `stop`.
pub(super) const STEP: usize = 1024;

/// A vector `[dim]` of length 1, as the library holds it.
type Reference<'a> = &'a [f32];

/// 1 - cosine similarity of normalised vectors.
struct CosineDistance(Similarity);

impl Distance<Reference<'_>> for CosineDistance {
    /// Rounding may take the product of two unit vectors above 1. The library panics on a negative distance.
    fn eval(&self, a: &[Reference<'_>], b: &[Reference<'_>]) -> f32 {
        (1.0 - self.0.dot(a[0], b[0])).max(0.0)
    }
}

/// The links of a graph over `vectors`, in their order. Uses all threads of the current pool and advances `progress` by one for
/// each vector; `None` where `stop` was set.
pub(super) fn links_of(vectors: &[Reference<'_>], progress: &ProgressBar, stop: &AtomicBool) -> Option<Links> {
    let hnsw = Hnsw::new(LINKS, vectors.len(), LAYERS, EF_CONSTRUCTION, CosineDistance(Similarity::default()));
    let links = insert_all(&hnsw, vectors, progress, stop).then(|| compact(&hnsw));
    drop(hnsw);
    release_memory();
    links
}

/// Inserts every vector; false where `stop` was set before the last of them.
fn insert_all<'a>(
    hnsw: &Hnsw<'a, Reference<'a>, CosineDistance>,
    vectors: &'a [Reference<'a>],
    progress: &ProgressBar,
    stop: &AtomicBool,
) -> bool {
    let insert = |row: usize| hnsw.insert((&vectors[row..=row], row));
    let serial = SERIAL_ROWS.min(vectors.len());
    (0..serial).for_each(insert);
    progress.inc(serial as u64);
    for start in (serial..vectors.len()).step_by(STEP) {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let end = vectors.len().min(start + STEP);
        (start..end).into_par_iter().for_each(insert);
        progress.inc((end - start) as u64);
    }
    true
}

/// The library's links in our layout.
fn compact(hnsw: &Hnsw<'_, Reference<'_>, CosineDistance>) -> Links {
    let indexation = hnsw.get_point_indexation();
    let top = usize::from(hnsw.get_max_level_observed());
    let entry = indexation.get_layer_iterator(top).next().map_or(0, |point| point.get_origin_id() as u32);
    let mut points: Vec<_> = (0..=top).flat_map(|layer| indexation.get_layer_iterator(layer)).collect();
    points.sort_unstable_by_key(|point| point.get_origin_id());
    Links::new(entry, points.iter().map(|point| neighbours_of(point)))
}

/// The neighbours of a point on each of its layers, from the bottom up.
///
/// The library also notes one neighbour on each layer above the point's own, for searches that begin while a graph is small. Those
/// are left out, and so is the point itself, to which it may be linked where two threads inserted neighbours at the same time.
fn neighbours_of(point: &Point<'_, Reference<'_>>) -> Vec<Vec<u32>> {
    let own = point.get_origin_id();
    let layers = 1 + usize::from(point.get_point_id().0);
    let neighbours = point.get_neighborhood_id().into_iter().take(layers).enumerate();
    neighbours
        .map(|(layer, neighbours)| {
            let others = neighbours.iter().map(|neighbour| neighbour.d_id).filter(|&id| id != own);
            others.take(Links::most(layer)).map(|id| id as u32).collect()
        })
        .collect()
}

/// Has the memory of the library's graph, which is many small blocks, go back to the system: it is as large as the vectors, and
/// left to itself glibc keeps it for later blocks of the same sizes.
fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "glibc has no other way to free what its arenas keep; it takes a number and locks what it changes")]
        // SAFETY: only memory that no block uses is returned to the system, and the function may be called from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::walk::Layer;
    use super::*;

    fn links(vectors: &[Vec<f32>], stop: bool) -> Option<Links> {
        let vectors: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
        links_of(&vectors, &ProgressBar::hidden(), &AtomicBool::new(stop))
    }

    /// The library asserts that no distance is negative.
    #[test]
    fn products_above_one_build_a_graph() {
        let vector = vec![(1.0 / 32.0_f32).sqrt() * 1.000_001; 32];
        assert!(Similarity::default().dot(&vector, &vector) > 1.0);
        assert!(links(&vec![vector; 700], false).is_some());
    }

    #[test]
    fn a_build_that_is_told_to_stop_ends_without_a_graph() {
        let vectors: Vec<Vec<f32>> = (0..2000).map(|row| vec![(row as f32).sin(), (row as f32).cos()]).collect();
        assert!(links(&vectors, true).is_none());
    }

    #[test]
    fn no_vector_and_one_vector_have_no_links() {
        assert!(links(&[], false).is_some());
        let one = links(&[vec![1.0, 0.0]], false).unwrap();
        let mut neighbours = Vec::new();
        one.bottom().neighbours(0, &mut neighbours);
        assert_eq!((one.entry, neighbours.len()), (0, 0));
    }
}
