//! `dino-train segment-eval`: masks against those that people drew.

mod recommend;
pub(super) mod untrained;
mod view;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_hub::{Location, Want};
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::tree;
use dino_vision::model::Model;
use dino_vision::segment::Method;
use image::RgbImage;

use self::untrained::untrained;
use self::view::{View, centred_box};
use super::backbone::DeviceArgs;
use crate::evaluate::descriptors::decode;
use crate::evaluate::drawn;
use crate::evaluate::segmentation::{Figures, Prediction, Tally, Truth};

/// Most objects of which a method's mask is made: all of them.
const ALL: usize = 1000;

/// Compare the objects that each method finds with masks that people drew. Attention is also given with the best head
/// of each picture chosen by its mask ("oracle"), as the paper does: that is no figure of a method that could be used.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model folder; `hf://OWNER/NAME[@REVISION][/FILE]` names one, or an ONNX file, on a model hub.
    #[arg(long, value_name = "MODEL_DIR|HF", value_parser = dino_program::flags::location())]
    model: Location,
    /// Pictures.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Their masks, below DIR as the pictures are below theirs, with the same names ending in `.png` or `_mask.png`. White on black, cut at
    /// half grey where edges are soft; or numbers, by a palette or as dark greys: 0 is background, 255 is left out, each other an object; or
    /// colours: black is background, VOC's (224, 224, 192) is left out, each other an object. What is less than half opaque is background.
    /// JPEG is always cut at half. Masks that can be read in two ways are skipped, and named.
    #[arg(long, value_name = "DIR")]
    masks: PathBuf,
    /// Methods to measure.
    #[arg(long, value_delimiter = ',', default_values_t = Method::ALL, value_name = "METHOD,…")]
    method: Vec<Method>,
    /// Longer side in pixels at which the model sees a picture.
    #[arg(long, default_value_t = 480, value_parser = clap::value_parser!(u32).range(16..=4096))]
    segment_size: u32,
    /// Measure every method at several sizes and thresholds with and without refined borders, and write the best into the model's
    /// `manifest.json`: `/segment` without `method` follows it. Judged is the first mask of each picture, as it is served.
    #[arg(long, conflicts_with_all = ["baselines", "segment_size"])]
    recommend: bool,
    /// Measure beside them a centred box, contrast of colours, and an untrained transformer of the model's shape.
    #[arg(long)]
    baselines: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Runs the verb.
///
/// # Errors
/// Where there is no picture with a mask, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let pairs = pairs(&args.images, &args.masks)?;
    let mut tallies = Tallies::default();
    let path = args.model.fetch(&Want::Graph { precision: args.device.precision.to_string() })?.path;
    let model = Model::open(&path)?;
    if args.recommend {
        return recommend::run(&model, &path, &args.method, &args.device, &pairs);
    }
    measure(args, &model, "", &pairs, &mut tallies)?;
    if args.baselines {
        if model.manifest().is_convolutional() {
            tracing::warn!("no untrained baseline: the model is no transformer");
        } else {
            let folder = tempfile::tempdir()?;
            let untrained = untrained(model.manifest(), folder.path()).context("the untrained transformer")?;
            measure(args, &untrained, "untrained ", &pairs, &mut tallies)?;
        }
    }
    print(&tallies, pairs.len())
}

/// Measures how masks are best made with the model in `folder`, by pictures and their masks ([`pairs`]), and writes it into its manifest.
///
/// # Errors
/// Where no picture can be read, or the model does not run.
pub(super) fn recommend(folder: &Path, pairs: &[(PathBuf, PathBuf)], device: &DeviceArgs) -> anyhow::Result<()> {
    recommend::run(&Model::open(folder)?, folder, &Method::ALL, device, pairs)
}

/// Sums by row of the table, in the order of their first picture.
#[derive(Default)]
struct Tallies(Vec<(String, Tally)>);

impl Tallies {
    fn add(&mut self, row: String, scene: &str, truth: &Truth, prediction: &Prediction) {
        let at = self.0.iter().position(|(name, _)| *name == row).unwrap_or_else(|| {
            self.0.push((row, Tally::default()));
            self.0.len() - 1
        });
        self.0[at].1.add(scene, truth, prediction);
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(tallies: &Tallies, count: usize) -> anyhow::Result<()> {
    println!("{:<32} jaccard   [90 %]          max F  accuracy    CorLoc    score", format!("{count} pictures"));
    let mut report: BTreeMap<&str, Figures> = BTreeMap::new();
    for (name, tally) in &tallies.0 {
        let Some(figures) = tally.figures() else { continue };
        let Figures { jaccard, jaccard_interval: [low, high], max_f, accuracy, corloc, score_correlation } = figures;
        let score = score_correlation.map_or_else(String::new, |correlation| format!("{correlation:7.2}"));
        println!("{name:<32} {jaccard:7.2}  [{low:5.1} {high:5.1}]  {max_f:7.2}   {accuracy:7.2}   {corloc:7.2}  {score}");
        report.insert(name, figures);
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Pictures with their masks, by path.
///
/// # Errors
/// Where a folder cannot be read, or no picture has a mask.
pub(super) fn pairs(images: &Path, masks: &Path) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut pairs = Vec::new();
    let finder = Finder::default();
    for entry in tree::list(images)?.entries {
        let mask = mask_of(&entry.path, images, masks, &finder).filter(|mask| *mask != entry.path);
        pairs.extend(mask.map(|mask| (entry.path.clone(), mask)));
    }
    if let (count, Some(first)) = finder.found() {
        tracing::warn!("found {count} masks under another Unicode form of their name, the first: {}", first.display());
    }
    ensure!(
        !pairs.is_empty(),
        "no picture of {} has a mask in {}: masks are named NAME.png or NAME_mask.png",
        images.display(),
        masks.display()
    );
    Ok(pairs)
}

/// The mask of a picture of `images`: the file in `masks` at the same place whose name ends in `_mask.png`, or `.png`.
pub(in crate::cli) fn mask_of(picture: &Path, images: &Path, masks: &Path, finder: &Finder) -> Option<PathBuf> {
    let stem = masks.join(picture.strip_prefix(images).unwrap_or(picture).with_extension(""));
    let named = |end: &str| {
        let mut name = stem.clone().into_os_string();
        name.push(end);
        PathBuf::from(name)
    };
    [named("_mask.png"), named(".png")].into_iter().filter_map(|mask| finder.find(&mask)).find(|mask| mask.is_file())
}

/// A picture with its mask; `None` after a warning where one of them cannot be read.
fn read(picture: &Path, mask: &Path) -> Option<(Truth, RgbImage)> {
    let outcome = decode(picture).and_then(|picture| Ok((drawn::read(mask, picture.dimensions())?, picture)));
    outcome.inspect_err(|error| tracing::warn!("skipped {error:#}")).ok()
}

/// What pictures of one scene have in common: the folder and the name before its last number, as videos are cut into frames
/// (`camel/00010.jpg`, `camel_00010.jpg`).
fn scene(picture: &Path) -> String {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    let name = stem.trim_end_matches(|letter: char| letter.is_ascii_digit()).trim_end_matches(['_', '-', ' ']);
    picture.with_file_name(name).display().to_string()
}

/// Runs the model over all pictures, and adds a row for each method, named `prefix` and method.
fn measure(args: &Args, model: &Model, prefix: &str, pairs: &[(PathBuf, PathBuf)], tallies: &mut Tallies) -> anyhow::Result<()> {
    let mut session = args.device.session(model)?;
    for (picture, mask) in pairs {
        let scene = scene(picture);
        let Some((truth, picture)) = read(picture, mask) else { continue };
        let view = View::new(&mut session, model, &picture, args.segment_size)?;
        for method in &args.method {
            for (name, prediction) in view.predictions(*method, &truth)? {
                tallies.add(format!("{prefix}{name}"), &scene, &truth, &prediction);
            }
        }
        if args.baselines && prefix.is_empty() {
            tallies.add("centred box".into(), &scene, &truth, &centred_box(view.size));
            tallies.add("colour contrast".into(), &scene, &truth, &view.colour_contrast());
        }
    }
    ensure!(!tallies.0.is_empty(), "no picture and its mask could be read");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::scene;

    #[test]
    fn frames_of_a_video_are_one_scene() {
        let of = |path: &str| scene(Path::new(path));
        assert_eq!(of("davis/camel_00010.jpg"), of("davis/camel_00020.jpg"));
        assert_eq!(of("davis/camel/00010.jpg"), of("davis/camel/00020.jpg"));
        assert_ne!(of("davis/camel/00010.jpg"), of("davis/goat/00010.jpg"));
        assert_ne!(of("a/cat.jpg"), of("a/dog.jpg"));
    }
}
