//! Classes of pixels.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
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
use crate::evaluate::drawn::{self, Counts, Folder, HALF};
use crate::evaluate::video::labels::{Numbers, check_size};
use crate::show::draw;

/// Weight decay of the public configurations.
const DECAY: f64 = 1e-4;
/// What to do where greys may be numbers or soft edges.
const ADVICE: &str = "name the classes with --classes where they are numbers, else save the masks in black and white alone";

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
    /// White on black: from half grey on class 1.
    WhiteOnBlack,
}

impl Classes {
    /// Looks through all masks for their numbers.
    ///
    /// # Errors
    /// Where a mask cannot be read, masks are of different kinds, or there is no second class.
    pub(super) fn of(train: &[Pair], val: &[Pair], names: Option<&Path>, reduce_zero_label: bool) -> Result<Self> {
        let names = names.map(read_names).transpose()?;
        let (train, val) = (Used::by(train)?, Used::by(val)?);
        ensure!(train.has_known(), "none of the masks of train tells anything: {}", Self::NOTHING_KNOWN);
        ensure!(val.has_known(), "none of the masks of val tells anything: {}", Self::NOTHING_KNOWN);
        let guessed = !reduce_zero_label && names.as_ref().is_none_or(|names| names.len() == 2);
        let soft = train.folder.clone().merged(val.folder.clone()).is_soft(ADVICE);
        let is_soft = guessed && matches!(soft, Ok(true));
        if guessed && !is_soft {
            let other = match (train.is_white_on_black(), val.is_white_on_black()) {
                (true, false) => val.other(),
                (false, true) => train.other(),
                _ => None,
            };
            if let Some(number) = other {
                bail!(
                    "the masks of one of train and val have no numbers but 0 and 255, those of the other have the number {number}: write the classes of \
                     both as numbers from 0 on, or both in white on black"
                );
            }
        }
        if guessed && names.is_none() {
            soft?;
        }
        let is_white_on_black = guessed && (is_soft || train.is_white_on_black() || val.is_white_on_black());
        let reading = match (reduce_zero_label, is_white_on_black) {
            (true, _) => Reading::WithoutZero,
            (false, true) => Reading::WhiteOnBlack,
            (false, false) => Reading::Plain,
        };
        let most = train.most().max(val.most());
        let names = match (names, reading) {
            (Some(names), _) => names,
            (None, Reading::WhiteOnBlack) => vec!["background".to_owned(), "object".to_owned()],
            (None, Reading::Plain) => (0..=most).map(|number| number.to_string()).collect(),
            (None, Reading::WithoutZero) => (1..=most).map(|number| number.to_string()).collect(),
        };
        if reading == Reading::WhiteOnBlack {
            let kind = if is_soft { "soft edges and are cut at half" } else { "no numbers but 0 and 255" };
            tracing::info!("masks have {kind}: white is the object");
        }
        train.warn_of_white(reading);
        ensure!(names.len() >= 2, "masks need at least two classes, and have {}", names.len());
        ensure!(names.len() <= MOST_CLASSES, "--classes names {} classes; masks can tell {MOST_CLASSES}", names.len());
        Ok(Self { names, reading })
    }
}

/// How many pixels of a set have each number, and whether they are greys.
#[derive(Default)]
struct Used {
    numbers: Counts,
    folder: Folder,
}

impl Used {
    fn by(pairs: &[Pair]) -> Result<Self> {
        let count = |pair: &Pair| -> Result<Self> {
            let stored = drawn::stored(&pair.mask)?;
            Ok(Self { numbers: Counts::of(stored.values.iter().copied()), folder: Folder::of(&pair.mask, &stored) })
        };
        let merge = |a: Self, b: Self| Ok(Self { numbers: a.numbers.merged(&b.numbers), folder: a.folder.merged(b.folder) });
        pairs.par_iter().map(count).try_reduce(Self::default, merge)
    }

    /// A number beside 0 and 255.
    fn other(&self) -> Option<usize> {
        (1..usize::from(IGNORE)).find(|number| self.numbers.0[*number] > 0)
    }

    /// Whether 0 and 255 are there, and nothing else.
    fn is_white_on_black(&self) -> bool {
        self.numbers.0[0] > 0 && self.numbers.white() > 0 && self.other().is_none()
    }

    /// Whether there is a number that is not left out.
    fn has_known(&self) -> bool {
        self.numbers.within(0..IGNORE) > 0
    }

    /// The largest number that is not left out.
    fn most(&self) -> usize {
        self.numbers.0[..usize::from(IGNORE)].iter().rposition(|count| *count > 0).unwrap_or(0)
    }

    /// 255 in most pixels may mean something else in these masks than how they are read.
    fn warn_of_white(&self, reading: Reading) {
        let (white, all) = (self.numbers.white(), self.numbers.0.iter().sum::<u64>());
        if 2 * white > all {
            let meaning = if reading == Reading::WhiteOnBlack { "the object" } else { "left out" };
            let percent = 100.0 * white as f64 / all as f64;
            tracing::warn!("{percent:.0} % of the pixels of train's masks have the number 255, which is {meaning}");
        }
    }
}

/// One name a line. Empty lines at the end are left out.
fn read_names(path: &Path) -> Result<Vec<String>> {
    let text = fs_err::read_to_string(path)?;
    let names: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_owned()).collect();
    ensure!(!names.is_empty(), "{} holds no names: one a line is expected", path.display());
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    for (name, number) in names.iter().zip(1..) {
        let path = path.display();
        ensure!(!name.is_empty(), "{path}: line {number} is empty, and the lines are the numbers of the classes in order: give it a name");
        let first = *numbers.entry(name).or_insert(number);
        ensure!(first == number, "{path}: lines {first} and {number} are both `{name}`: classes need different names");
    }
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
    const NOTHING_KNOWN: &'static str = "every pixel has the number 255 (or 0 with --reduce-zero-label), which is left out. Write the classes \
        as numbers from 0 on";
    type Score = Confusion;

    fn read(&self, mask: &Path, size: (u32, u32)) -> Result<Vec<u8>> {
        let numbers = Numbers::read(mask)?;
        check_size(&numbers, mask, size)?;
        let class = |number: u8| match (self.reading, number) {
            (Reading::WhiteOnBlack, grey) => u8::from(grey >= HALF),
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

    fn is_known(&self, label: u8) -> bool {
        label != IGNORE
    }

    fn start(&self, features: usize, lr: f64, random: &mut ChaCha8Rng) -> Probe {
        Probe::with_norm(self.names.len(), features, lr, DECAY, random)
    }

    fn answer(&self, logits: ArrayView2<'_, f32>, patches: PatchGrid, grid: PatchGrid) -> Vec<u8> {
        ClassMap::new(logits, patches, grid).classes
    }

    fn nothing(&self) -> Confusion {
        Confusion::new(self.names.len())
    }

    fn score(&self, truth: &[u8], answer: &[u8]) -> Confusion {
        let mut confusion = self.nothing();
        confusion.add(truth, answer);
        confusion
    }

    fn add(all: &mut Confusion, picture: Confusion) {
        all.merge(&picture);
    }

    fn figures(&self, all: &Confusion) -> Result<Figures> {
        let figures = all.figures();
        let iou: Map<String, Value> = self.names.iter().cloned().zip(figures.iou.iter().map(|iou| json!(iou))).collect();
        let columns = vec![("miou", figures.miou), ("accuracy", figures.accuracy), ("mean_accuracy", figures.mean_accuracy)];
        Ok(Figures { rank: figures.miou, columns, more: Map::from_iter([("iou".to_owned(), iou.into())]) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_one_score_over_all_their_pixels() {
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let classes = Classes { names, reading: Reading::Plain };
        let pictures: [(&[u8], &[u8]); 3] = [(&[0, 0, 1, IGNORE], &[0, 1, 1, 0]), (&[2], &[0]), (&[1, 2], &[1, 2])];
        let mut all = classes.nothing();
        for (truth, answer) in pictures {
            Classes::add(&mut all, classes.score(truth, answer));
        }
        let pixels = pictures.map(|(truth, _)| truth).concat();
        let answers = pictures.map(|(_, answer)| answer).concat();
        assert_eq!(all, classes.score(&pixels, &answers));
        let figures = classes.figures(&all).unwrap();
        // Pixels that are right over those of the class in the mask or the answer: 1 of 3, 2 of 3 and 1 of 2.
        let miou = 100.0 * (1.0 / 3.0 + 2.0 / 3.0 + 1.0 / 2.0) / 3.0;
        assert!((figures.rank - miou).abs() < 1e-9, "{}, not {miou}", figures.rank);
    }
}
