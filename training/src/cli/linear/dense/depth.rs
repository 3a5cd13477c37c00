//! Depths of pixels.

use std::path::Path;

use anyhow::{Context as _, Result};
use dino_vision::dense::depth::{BINS, Depths};
use dino_vision::head::{DepthRange, Task};
use dino_vision::transform::PatchGrid;
use image::Rgb;
use ndarray::{Array2, ArrayView2};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, json};

use super::{Figures, Kind};
use crate::evaluate::dense::depth::Depth;
use crate::evaluate::dense::depth_map;
use crate::evaluate::dense::figures::DepthFigures;
use crate::evaluate::dense::{Example, Objective, Probe};
use crate::show::draw;

/// Weight decay of the public configurations.
const DECAY: f64 = 1e-2;
/// Steps in which the loss is its mean alone (`warm_iter` of the public loss), and their largest share of all steps.
const WARMUP: usize = 100;
const WARMUP_SHARE: usize = 10;
/// Colours of the legend.
const LEGEND: usize = 5;

/// Depths by bins.
pub(super) struct Bins {
    objective: Depth,
    scale: f32,
}

impl Bins {
    /// Numbers of maps are divided by `scale`; the training has this number of steps.
    pub(super) fn new(range: DepthRange, scale: f32, steps: usize) -> Self {
        Self { objective: Depth { range, warmup: WARMUP.min(steps / WARMUP_SHARE) }, scale }
    }

    fn range(&self) -> DepthRange {
        self.objective.range
    }
}

impl Objective for Bins {
    type Label = f32;

    fn loss(&self, logits: &[Array2<f32>], batch: &[Example<f32>], step: usize) -> (f64, Vec<Array2<f32>>) {
        self.objective.loss(logits, batch, step)
    }
}

impl Kind for Bins {
    const TASK: Task = Task::Depth;
    const NOTHING_KNOWN: &'static str = "no number divided by --depth-scale lies between --min-depth and --max-depth, and 0 is not known. Give \
        --depth-scale 1000 for maps in millimetres, 256 for KITTI's, and --max-depth in the unit that follows";
    /// Of each picture in which something is known: the figures of all are their means.
    type Score = Vec<DepthFigures>;

    fn read(&self, mask: &Path, size: (u32, u32)) -> Result<Vec<f32>> {
        depth_map::read(mask, size, self.scale)
    }

    fn is_known(&self, label: f32) -> bool {
        label > self.range().min && label < self.range().max
    }

    fn start(&self, features: usize, lr: f64, random: &mut ChaCha8Rng) -> Probe {
        Probe::without_norm(BINS, features, lr, DECAY, random)
    }

    fn answer(&self, logits: ArrayView2<'_, f32>, patches: PatchGrid, grid: PatchGrid) -> Vec<f32> {
        Depths::new(logits, patches, self.range()).enlarged(grid).values
    }

    fn nothing(&self) -> Vec<DepthFigures> {
        Vec::new()
    }

    fn score(&self, truth: &[f32], answer: &[f32]) -> Vec<DepthFigures> {
        DepthFigures::of(truth, answer, self.range()).into_iter().collect()
    }

    fn add(all: &mut Vec<DepthFigures>, picture: Vec<DepthFigures>) {
        all.extend(picture);
    }

    fn figures(&self, all: &Vec<DepthFigures>) -> Result<Figures> {
        let mean = DepthFigures::mean(all).context(Self::NOTHING_KNOWN)?;
        let DepthFigures { abs_rel, rmse, delta1, delta2, delta3 } = mean;
        let columns = vec![("abs_rel", abs_rel), ("rmse", rmse), ("delta1", delta1), ("delta2", delta2), ("delta3", delta3)];
        let range = json!([self.range().min, self.range().max]);
        Ok(Figures { rank: -rmse, columns, more: Map::from_iter([("depth_range".to_owned(), range)]) })
    }

    fn colour(&self, label: f32) -> Option<Rgb<u8>> {
        (label > 0.0).then(|| draw::viridis(1.0 - label / self.range().max))
    }

    fn legend(&self) -> Vec<(String, Rgb<u8>)> {
        let depth = |at: usize| self.range().max * at as f32 / (LEGEND - 1) as f32;
        (0..LEGEND).map(|at| (format!("{}", depth(at)), draw::viridis(1.0 - depth(at) / self.range().max))).collect()
    }

    fn describe(&self) -> (Vec<String>, Option<DepthRange>) {
        (Vec::new(), Some(self.range()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_count_alike_whatever_their_size_and_those_without_depths_do_not() {
        let bins = Bins::new(DepthRange { min: 0.1, max: 10.0 }, 1.0, 0);
        let pictures: [(&[f32], &[f32]); 3] = [(&[2.0, 2.0, 2.0], &[2.0, 2.0, 2.0]), (&[0.0, 20.0], &[1.0, 1.0]), (&[2.0], &[4.0])];
        let mut all = bins.nothing();
        for (truth, answer) in pictures {
            Bins::add(&mut all, bins.score(truth, answer));
        }
        assert_eq!(all.len(), 2);
        let figures = bins.figures(&all).unwrap();
        assert!((figures.rank + 1.0).abs() < 1e-9, "rmse {}, not 1", -figures.rank);
        assert!(bins.figures(&bins.nothing()).is_err());
    }
}
