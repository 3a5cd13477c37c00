//! `dino-train segment-eval`: masks against those that people drew.

use std::collections::BTreeMap;
use std::iter::zip;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use candle_core::Device as Candle;
use dino_hub::{Location, Want};
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::{self, tree};
use dino_vision::cores;
use dino_vision::media::{self, Limits};
use dino_vision::model::{Device, Manifest, Model, Precision, Session, SessionOptions};
use dino_vision::placement::{Placement, Workload};
use dino_vision::segment::{Head, Mask, Method, Object, Options, Patches, patch_at, segment, structure};
use dino_vision::transform::{PatchGrid, Transform};
use image::RgbImage;
use ndarray::{Array3, Axis};
use rand::SeedableRng as _;

use crate::backbone::vit::{Vit, VitConfig};
use crate::evaluate::drawn;
use crate::evaluate::segmentation::{Figures, Prediction, Tally, Truth};
use crate::export;
use crate::kernels::matmul;

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
    /// Measure beside them a centred box, contrast of colours, and an untrained transformer of the model's shape.
    #[arg(long)]
    baselines: bool,
    /// Precision to run the model in.
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// Where the model runs: auto (the fastest that is there), cpu, cuda[:N], tensorrt[:N], openvino[:CPU|GPU|NPU] or
    /// plugin:PATH[:N].
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Use a device although it does not compute what ONNX Runtime's CPU computes.
    #[arg(long)]
    trust_device: bool,
}

/// Runs the verb.
///
/// # Errors
/// Where there is no picture with a mask, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let pairs = pairs(args)?;
    let mut tallies = Tallies::default();
    let model = Model::open(&args.model.fetch(&Want::Graph { precision: args.precision.to_string() })?.path)?;
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

/// Sums by row of the table, in the order of their first picture.
#[derive(Default)]
struct Tallies(Vec<(String, Tally)>);

impl Tallies {
    fn add(&mut self, row: String, truth: &Truth, prediction: &Prediction) {
        let at = self.0.iter().position(|(name, _)| *name == row).unwrap_or_else(|| {
            self.0.push((row, Tally::default()));
            self.0.len() - 1
        });
        self.0[at].1.add(truth, prediction);
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(tallies: &Tallies, count: usize) -> anyhow::Result<()> {
    println!("{:<32} jaccard    max F  accuracy    CorLoc", format!("{count} pictures"));
    let mut report: BTreeMap<&str, Figures> = BTreeMap::new();
    for (name, tally) in &tallies.0 {
        let Some(figures) = tally.figures() else { continue };
        let Figures { jaccard, max_f, accuracy, corloc } = figures;
        println!("{name:<32} {jaccard:7.2}  {max_f:7.2}   {accuracy:7.2}   {corloc:7.2}");
        report.insert(name, figures);
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Pictures with their masks, by path.
fn pairs(args: &Args) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut pairs = Vec::new();
    let finder = Finder::default();
    for entry in tree::list(&args.images)?.entries {
        let relative = entry.path.strip_prefix(&args.images).unwrap_or(&entry.path);
        let stem = relative.with_extension("");
        let named = |end: &str| {
            let mut name = stem.clone().into_os_string();
            name.push(end);
            args.masks.join(name)
        };
        let masks = [named("_mask.png"), named(".png")].into_iter().filter_map(|mask| finder.find(&mask));
        let mask = masks.into_iter().find(|mask| mask.is_file() && *mask != entry.path);
        pairs.extend(mask.map(|mask| (entry.path.clone(), mask)));
    }
    if let (count, Some(first)) = finder.found() {
        tracing::warn!("found {count} masks under another Unicode form of their name, the first: {}", first.display());
    }
    let (images, masks) = (args.images.display(), args.masks.display());
    ensure!(!pairs.is_empty(), "no picture of {images} has a mask in {masks}: masks are named NAME.png or NAME_mask.png");
    Ok(pairs)
}

fn decode(path: &Path) -> anyhow::Result<RgbImage> {
    let read = || Ok::<_, bulk::Error>(media::decode(&bulk::read(path)?, &Limits::default())?);
    read().with_context(|| path.display().to_string())
}

/// Runs the model over all pictures, and adds a row for each method, named `prefix` and method.
fn measure(args: &Args, model: &Model, prefix: &str, pairs: &[(PathBuf, PathBuf)], tallies: &mut Tallies) -> anyhow::Result<()> {
    let Args { device, precision, trust_device, .. } = *args;
    let options = SessionOptions { device, precision, trust_device, threads: cores::available(), ..SessionOptions::default() };
    let mut session = Placement::of(model, &options, Workload { sessions: Some(1), batch: None })?.sessions.remove(0).0;
    let Manifest { transform, patch_size, .. } = model.manifest();
    for (picture, mask) in pairs {
        let outcome = decode(picture).and_then(|picture| Ok((drawn::read(mask, picture.dimensions())?, picture)));
        let (truth, picture) = match outcome {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("skipped {error:#}");
                continue;
            }
        };
        let view = View::new(&mut session, &picture, transform, args.segment_size, *patch_size)?;
        for method in &args.method {
            for (name, prediction) in view.predictions(*method, &truth)? {
                tallies.add(format!("{prefix}{name}"), &truth, &prediction);
            }
        }
        if args.baselines && prefix.is_empty() {
            tallies.add("centred box".into(), &truth, &centred_box(view.size));
            tallies.add("colour contrast".into(), &truth, &view.colour_contrast());
        }
    }
    ensure!(!tallies.0.is_empty(), "no picture and its mask could be read");
    Ok(())
}

/// One picture as a model sees it.
struct View {
    input: Array3<f32>,
    grid: PatchGrid,
    size: (u32, u32),
    outputs: dino_vision::model::Outputs,
}

impl View {
    fn new(session: &mut Session, picture: &RgbImage, transform: &Transform, side: u32, patch: u32) -> anyhow::Result<Self> {
        let (input, grid) = transform.whole_picture(picture, side, patch);
        let outputs = session.run(input.view().insert_axis(Axis(0)))?;
        Ok(Self { input, grid, size: picture.dimensions(), outputs })
    }

    /// A prediction for each row that the method has in the table.
    fn predictions(&self, method: Method, truth: &Truth) -> anyhow::Result<Vec<(String, Prediction)>> {
        // Cuts and expansions after the first are other objects, not parts of it.
        let max_objects = if matches!(method, Method::Ncut | Method::Lost) { 1 } else { ALL };
        if method != Method::Attention {
            let found = self.find(Options { method, max_objects, ..Options::default() })?;
            return Ok(vec![(method.to_string(), found)]);
        }
        let head = |head| self.find(Options { method, max_objects, head, ..Options::default() });
        let heads = Patches::of(&self.outputs, self.grid).attention()?.nrows();
        let each: Vec<Prediction> = (0..heads).map(|number| head(Head::Number(number))).collect::<Result<_, _>>()?;
        let rated = each.into_iter().map(|found| (truth.jaccard(&found), found));
        let oracle = rated.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, found)| found);
        let rows = [("attention, mean of heads", head(Head::Mean)?), ("attention, head by entropy", head(Head::Best)?)];
        let rows = rows.into_iter().chain(oracle.map(|oracle| ("attention, oracle head", oracle)));
        Ok(rows.map(|(name, prediction)| (name.to_owned(), prediction)).collect())
    }

    fn find(&self, options: Options) -> anyhow::Result<Prediction> {
        let patches = Patches::of(&self.outputs, self.grid);
        let found = segment(&patches, self.size, structure(self.input.view(), self.grid), &options)?;
        Ok(prediction(&found.objects, found.grid, self.size))
    }

    /// How far the colour of each patch is from the picture's mean colour; above twice the mean of that, an object (Achanta et
    /// al. 2009, without their blur).
    fn colour_contrast(&self) -> Prediction {
        let grid = self.grid;
        let (_, height, width) = self.input.dim();
        let (high, wide) = (height / grid.rows, width / grid.columns);
        let mut contrast = vec![0.0_f32; grid.len()];
        for plane in self.input.outer_iter() {
            let mean = plane.mean().unwrap_or_default();
            for (patch, contrast) in contrast.iter_mut().enumerate() {
                let (row, column) = (patch / grid.columns * high, patch % grid.columns * wide);
                let part = plane.slice(ndarray::s![row..row + high, column..column + wide]);
                *contrast += (part.mean().unwrap_or_default() - mean).powi(2);
            }
        }
        for contrast in &mut contrast {
            *contrast = contrast.sqrt();
        }
        let mean = contrast.iter().sum::<f32>() / contrast.len() as f32;
        let mask = Mask::new(contrast.iter().map(|contrast| *contrast > 2.0 * mean).collect(), grid, self.size);
        prediction(&[Object { mask, score: 0.0, heat: contrast.into() }], grid, self.size)
    }
}

/// All objects as one mask, the first one's box, and its map.
fn prediction(objects: &[Object], grid: PatchGrid, size: (u32, u32)) -> Prediction {
    let mut cells = vec![false; grid.len()];
    for object in objects {
        for (cell, set) in zip(&mut cells, object.mask.cells()) {
            *cell |= set;
        }
    }
    let mask = Mask::new(cells, grid, size);
    let pixels = || (0..size.1).flat_map(move |y| (0..size.0).map(move |x| (x, y)));
    let heat = objects.first().map(|object| object.heat.clone());
    Prediction {
        pixels: pixels().map(|(x, y)| mask.contains(x, y)).collect(),
        saliency: pixels().map(|point| heat.as_ref().map_or(0.0, |heat| heat[patch_at(point, grid, size)])).collect(),
        bbox: objects.first().map_or([0; 4], |object| object.mask.bbox()),
    }
}

/// The middle of the picture, half as wide and half as high.
fn centred_box((width, height): (u32, u32)) -> Prediction {
    let bbox = [width / 4, height / 4, width.div_ceil(2), height.div_ceil(2)];
    let inside = |x, y| (bbox[0]..bbox[0] + bbox[2]).contains(&x) && (bbox[1]..bbox[1] + bbox[3]).contains(&y);
    let pixels: Vec<bool> = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| inside(x, y)).collect();
    Prediction { saliency: pixels.iter().map(|inside| f32::from(u8::from(*inside))).collect(), pixels, bbox }
}

/// A transformer of the model's shape with the weights that training starts from, as a model folder below `folder`.
fn untrained(manifest: &Manifest, folder: &Path) -> anyhow::Result<Model> {
    let config = VitConfig {
        img_size: manifest.transform.output_size().map_or(224, |(height, _)| height as usize),
        patch_size: manifest.patch_size as usize,
        dim: manifest.dim as usize,
        depth: manifest.depth as usize,
        heads: manifest.heads as usize,
        drop_path: 0.0,
        precision: matmul::Precision::F32,
    };
    let vit = Vit::new(config, &mut rand_chacha::ChaCha8Rng::seed_from_u64(0), &Candle::Cpu)?;
    let mut tensors = std::collections::HashMap::new();
    for group in vit.groups() {
        for (at, entry) in group.entries().iter().enumerate() {
            tensors.insert(entry.name.clone(), group.view(&group.flat(false), at)?);
        }
    }
    let checkpoint = folder.join("untrained.safetensors");
    candle_core::safetensors::save(&tensors, &checkpoint)?;
    let mut options = export::Options::default();
    options.checkpoint.heads = Some(config.heads);
    export::export(&checkpoint, &folder.join("model"), &options)?;
    Ok(Model::open(&folder.join("model"))?)
}
