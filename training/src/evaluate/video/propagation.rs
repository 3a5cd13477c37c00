//! Labels carried from frames to the next one: each patch takes those of the patches most like it, in the first frame and the last few.
//!
//! ```
//! use dino_train::evaluate::video::propagation::{Propagation, Settings};
//! use dino_vision::transform::PatchGrid;
//! use ndarray::array;
//!
//! // Two patches, of which the first is labelled; in the next frame they have changed places.
//! let settings = Settings { last_frames: 1, top_k: 1, neighbourhood: 0 };
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let mut video = Propagation::new(settings, grid, array![[1.0, 0.0], [0.0, 1.0]].view(), array![[0.0, 1.0], [1.0, 0.0]]);
//! assert_eq!(video.next(array![[0.0, 1.0], [1.0, 0.0]].view()), array![[1.0, 0.0], [0.0, 1.0]]);
//! ```

use std::collections::VecDeque;
use std::ops::Range;

use dino_vision::transform::PatchGrid;
use dino_vision::unit_rows;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

/// Cosines are divided by this before they are exponentiated.
const TEMPERATURE: f32 = 0.1;
/// Patches along the side of the squares that are compared at once: one product of matrices each.
const TILE: usize = 8;

/// How labels are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Frames before a frame that it looks at, beside the first.
    pub last_frames: usize,
    /// Patches that a patch takes its label from; not 0.
    pub top_k: usize,
    /// How many rows and columns away they may be; 0 looks everywhere.
    pub neighbourhood: usize,
}

impl Default for Settings {
    /// Those of the paper.
    fn default() -> Self {
        Self { last_frames: 7, top_k: 5, neighbourhood: 12 }
    }
}

/// A frame whose labels are known.
struct Frame {
    /// `[patches, dim]`, of length 1.
    features: Array2<f32>,
    /// `[patches, labels]`.
    shares: Array2<f32>,
}

/// A video, as far as it was seen.
pub struct Propagation {
    settings: Settings,
    grid: PatchGrid,
    first: Frame,
    last: VecDeque<Frame>,
}

impl Propagation {
    /// Begins with the features `[patches, dim]` of the first frame and the shares `[patches, labels]` of its labels.
    ///
    /// # Panics
    /// If the numbers of patches differ.
    pub fn new(settings: Settings, grid: PatchGrid, features: ArrayView2<'_, f32>, shares: Array2<f32>) -> Self {
        assert!(features.nrows() == grid.len() && shares.nrows() == grid.len(), "a row for each patch");
        Self { settings, grid, first: Frame { features: unit_rows::scaled(features), shares }, last: VecDeque::new() }
    }

    /// The shares `[patches, labels]` of the next frame, whose features `[patches, dim]` are given.
    ///
    /// # Panics
    /// If the features are not those of a frame of the same size by the same model.
    pub fn next(&mut self, features: ArrayView2<'_, f32>) -> ArrayView2<'_, f32> {
        let features = unit_rows::scaled(features);
        let tiles = |length: usize| (0..length).step_by(TILE).map(move |start| start..(start + TILE).min(length));
        let tiles: Vec<_> =
            tiles(self.grid.rows).flat_map(|rows| tiles(self.grid.columns).map(move |columns| (rows.clone(), columns))).collect();
        let carried: Vec<(usize, Array1<f32>)> =
            tiles.into_par_iter().flat_map_iter(|(rows, columns)| self.tile(features.view(), &rows, &columns)).collect();
        let mut shares = Array2::zeros(self.first.shares.dim());
        for (patch, share) in carried {
            shares.row_mut(patch).assign(&share);
        }
        if self.last.len() >= self.settings.last_frames {
            self.last.pop_front();
        }
        self.last.push_back(Frame { features, shares });
        self.last.back().expect("it was put there").shares.view()
    }

    /// The patches of a tile with their shares.
    fn tile(&self, features: ArrayView2<'_, f32>, rows: &Range<usize>, columns: &Range<usize>) -> Vec<(usize, Array1<f32>)> {
        let around = |range: &Range<usize>, length: usize| match self.settings.neighbourhood {
            0 => 0..length,
            reach => range.start.saturating_sub(reach)..range.end.saturating_add(reach).min(length),
        };
        let window = (around(rows, self.grid.rows), around(columns, self.grid.columns));
        let targets = self.rows(features, rows, columns);
        let frames = || std::iter::once(&self.first).chain(&self.last);
        // [frame] of [target, source]
        let cosines: Vec<Array2<f32>> =
            frames().map(|frame| targets.dot(&self.rows(frame.features.view(), &window.0, &window.1).t())).collect();
        let places = rows.clone().flat_map(|row| columns.clone().map(move |column| (row, column)));
        let mut candidates = Vec::new();
        let share_of = |(target, (row, column)): (usize, (usize, usize))| {
            let (near_rows, near_columns) = (around(&(row..row + 1), self.grid.rows), around(&(column..column + 1), self.grid.columns));
            candidates.clear();
            for (cosines, frame) in cosines.iter().zip(frames()) {
                for row in near_rows.clone() {
                    let start = (row - window.0.start) * window.1.len();
                    for column in near_columns.clone() {
                        let cosine = cosines[[target, start + column - window.1.start]];
                        candidates.push((cosine, frame, row * self.grid.columns + column));
                    }
                }
            }
            (row * self.grid.columns + column, self.carried(&mut candidates))
        };
        places.enumerate().map(share_of).collect()
    }

    /// The features of a rectangle of patches, row by row.
    fn rows(&self, features: ArrayView2<'_, f32>, rows: &Range<usize>, columns: &Range<usize>) -> Array2<f32> {
        let mut part = Array2::zeros((rows.len() * columns.len(), features.ncols()));
        for (mut to, row) in part.axis_chunks_iter_mut(Axis(0), columns.len()).zip(rows.clone()) {
            let start = row * self.grid.columns;
            to.assign(&features.slice(s![start + columns.start..start + columns.end, ..]));
        }
        part
    }

    /// The mean of the most alike candidates' shares, by the exponential of their likeness. Equals of the last one count too.
    fn carried(&self, candidates: &mut [(f32, &Frame, usize)]) -> Array1<f32> {
        let count = self.settings.top_k.min(candidates.len());
        let (_, &mut (least, ..), _) = candidates.select_nth_unstable_by(count - 1, |a, b| b.0.total_cmp(&a.0));
        let (mut sum, mut shares) = (0.0, Array1::zeros(self.first.shares.ncols()));
        for &(cosine, frame, patch) in candidates.iter().filter(|candidate| candidate.0 >= least) {
            let weight = (cosine / TEMPERATURE).exp();
            sum += weight;
            shares.scaled_add(weight, &frame.shares.row(patch));
        }
        shares / sum
    }
}
