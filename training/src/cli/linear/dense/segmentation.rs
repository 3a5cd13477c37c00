//! Classes of pixels.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use dino_vision::dense::segmentation::ClassMap;
use dino_vision::head::{DepthRange, MOST_CLASSES, Task};
use dino_vision::transform::PatchGrid;
use image::Rgb;
use ndarray::{Array2, ArrayView2};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::pairs::Pair;
use super::{Figures, Kind};
use crate::evaluate::dense::figures::Confusion;
use crate::evaluate::dense::segmentation::{IGNORE, Segmentation};
use crate::evaluate::dense::{Example, Objective, Probe};
use crate::evaluate::video::labels::{Numbers, check_size};
use crate::show::draw;

/// Weight decay of the public configurations.
const DECAY: f64 = 1e-4;

/// The classes of masks.
pub(super) struct Classes {
    names: Vec<String>,
    reading: Reading,
}

/// How numbers of masks are classes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// As they are; 255 is left out.
    Plain,
    /// 0 is left out, 1 is the first class.
    WithoutZero,
    /// White on black: 255 is class 1.
    WhiteOnBlack,
}

impl Classes {
    /// Looks through all masks for their numbers.
    ///
    /// # Errors
    /// Where a mask cannot be read, or has more classes than `names` has lines.
    pub(super) fn of(train: &[Pair], val: &[Pair], names: Option<&Path>, reduce_zero_label: bool) -> Result<Self> {
        let names = names.map(read_names).transpose()?;
        let numbers = |pair: &Pair| -> Result<[bool; 256]> {
            let mut used = [false; 256];
            Numbers::read(&pair.mask)?.values.iter().for_each(|value| used[usize::from(*value)] = true);
            Ok(used)
        };
        let merge = |a: [bool; 256], b: [bool; 256]| Ok(std::array::from_fn(|at| a[at] || b[at]));
        let used = train.par_iter().chain(val).map(numbers).try_reduce(|| [false; 256], merge)?;
        let is_white_on_black = used[255] && !used[1..255].contains(&true);
        let reading = match (reduce_zero_label, is_white_on_black) {
            (true, _) => Reading::WithoutZero,
            (false, true) => Reading::WhiteOnBlack,
            (false, false) => Reading::Plain,
        };
        let most = used[..255].iter().rposition(|used| *used).unwrap_or(0);
        let names = match (names, reading) {
            (Some(names), _) => names,
            (None, Reading::WhiteOnBlack) => vec!["background".to_owned(), "object".to_owned()],
            (None, Reading::Plain) => (0..=most).map(|number| number.to_string()).collect(),
            (None, Reading::WithoutZero) => (1..=most).map(|number| number.to_string()).collect(),
        };
        if reading == Reading::WhiteOnBlack {
            tracing::info!("masks have no numbers but 0 and 255: white is the object");
        }
        ensure!(names.len() >= 2, "masks need at least two classes, and have {}", names.len());
        ensure!(names.len() <= MOST_CLASSES, "--classes names {} classes; masks can tell {MOST_CLASSES}", names.len());
        Ok(Self { names, reading })
    }
}

fn read_names(path: &Path) -> Result<Vec<String>> {
    let text = fs_err::read_to_string(path)?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "{} holds no names: one a line is expected", path.display());
    Ok(names)
}

impl Objective for Classes {
    type Label = u8;

    fn loss(&self, logits: &[Array2<f32>], batch: &[Example<u8>], step: usize) -> (f64, Vec<Array2<f32>>) {
        Segmentation.loss(logits, batch, step)
    }
}

impl Kind for Classes {
    const TASK: Task = Task::Segmentation;
    type Score = Confusion;

    fn read(&self, mask: &Path, size: (u32, u32)) -> Result<Vec<u8>> {
        let numbers = Numbers::read(mask)?;
        check_size(&numbers, mask, size)?;
        let class = |number: u8| match (self.reading, number) {
            (Reading::WhiteOnBlack, IGNORE) => 1,
            (Reading::WithoutZero, 0) => IGNORE,
            (Reading::WithoutZero, number) if number != IGNORE => number - 1,
            (_, number) => number,
        };
        let classes: Vec<u8> = numbers.values.iter().map(|number| class(*number)).collect();
        let count = self.names.len();
        let is_known = |class: u8| usize::from(class) < count || class == IGNORE;
        if let Some(at) = classes.iter().position(|class| !is_known(*class)) {
            let number = numbers.values[at];
            let zero = usize::from(self.reading == Reading::WithoutZero);
            let reason = format!(
                "the mask has number {number}; there are {count} classes, {zero} to {}, and 255 is left out: name more with --classes",
                count + zero - 1
            );
            return Err(anyhow::anyhow!(reason)).with_context(|| mask.display().to_string());
        }
        Ok(classes)
    }

    fn start(&self, features: usize, lr: f64, random: &mut ChaCha8Rng) -> Probe {
        Probe::with_norm(self.names.len(), features, lr, DECAY, random)
    }

    fn answer(&self, logits: ArrayView2<'_, f32>, patches: PatchGrid, grid: PatchGrid) -> Vec<u8> {
        ClassMap::new(logits, patches, grid).classes
    }

    fn score(&self, truth: &[u8], answer: &[u8]) -> Confusion {
        let mut confusion = Confusion::new(self.names.len());
        confusion.add(truth, answer);
        confusion
    }

    fn figures(&self, scores: &[Confusion]) -> Figures {
        let mut all = Confusion::new(self.names.len());
        for confusion in scores {
            all.merge(confusion);
        }
        let figures = all.figures();
        let iou: Map<String, Value> = self.names.iter().cloned().zip(figures.iou.iter().map(|iou| json!(iou))).collect();
        let columns = vec![("miou", figures.miou), ("accuracy", figures.accuracy), ("mean_accuracy", figures.mean_accuracy)];
        Figures { rank: figures.miou, columns, more: Map::from_iter([("iou".to_owned(), iou.into())]) }
    }

    fn colour(&self, label: u8) -> Option<Rgb<u8>> {
        (label != IGNORE).then(|| draw::category(usize::from(label), self.names.len()))
    }

    fn legend(&self) -> Vec<(String, Rgb<u8>)> {
        let colour = |(number, name): (usize, &String)| (name.clone(), draw::category(number, self.names.len()));
        self.names.iter().enumerate().map(colour).collect()
    }

    fn describe(&self) -> (Vec<String>, Option<DepthRange>) {
        (self.names.clone(), None)
    }
}
