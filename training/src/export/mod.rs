//! Turns a checkpoint into a model folder.

mod cost;
mod int8;
pub mod onnx;
mod pictures;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dino_vision::bulk;
use dino_vision::model::manifest::{Cost, File, Manifest, Source};
use dino_vision::model::{Device, Model, ModelError, Precision, SessionOptions};
use ndarray::{Array, Array4, Dimension};

use crate::weights::{self, Backbone, Checkpoint, Positions, Report};
use onnx::{Extras, Format};
use pictures::Pictures;

/// Why a checkpoint was not exported. Nothing is left at the place of the model folder in any case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] weights::Error),
    /// The backbone cannot be written as a graph of this precision.
    #[error(transparent)]
    Graph(#[from] onnx::Error),
    /// The graph was tried, and it does not run, or ONNX Runtime is missing.
    #[error("the exported model cannot be tried: {0}")]
    DoesNotRun(#[from] ModelError),
    /// The graph was tried, and its answers are no numbers.
    #[error("the exported model answers NaN or infinite values in {0}, so the checkpoint is broken; nothing was written")]
    NotFinite(&'static str),
    /// There are too few pictures to measure with.
    #[error("{place} has {found} pictures that can be read; at least {needed} are needed to measure with")]
    Pictures {
        /// Where they were looked for.
        place: String,
        /// How many there are.
        found: usize,
        /// How many there have to be.
        needed: usize,
    },
    /// The model failed on a picture to measure with.
    #[error("the exported model fails on a picture: {0}")]
    Measure(#[from] bulk::Error),
    /// More blocks are asked for than there are.
    #[error("--last-blocks {asked}: this backbone has {depth} blocks; give 0 to {depth}")]
    LastBlocks {
        /// What was asked for.
        asked: usize,
        /// How many there are.
        depth: usize,
    },
    /// A block is asked for that is not there.
    #[error("--layers {asked}: this backbone has {depth} blocks, numbered from 1; give numbers from 1 to {depth}")]
    Layer {
        /// The number that was asked for.
        asked: usize,
        /// How many there are.
        depth: usize,
    },
    /// A setting is given to a network that it does not fit.
    #[error("{0} is for vision transformers; this convolutional network has no tokens: export it without")]
    NoBlocks(&'static str),
    /// There is something else at the place of the model folder.
    #[error("{} exists and is no model folder; it is left as it is, choose another place", .0.display())]
    Occupied(PathBuf),
    /// The model folder cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the checkpoint does not say by itself.
    pub checkpoint: weights::Options,
    /// The checkpoint's name on a hub, with its commit, for the manifest.
    pub hub: Option<String>,
    /// One ONNX file is written for each.
    pub precisions: Vec<Precision>,
    /// Pictures to measure with what each precision but float32 costs.
    pub measured: Measured,
    /// Blocks, counted from the last, whose CLS tokens the graph gives beside its usual outputs.
    pub last_blocks: LastBlocks,
    /// Blocks, from 1, all of whose tokens the graph gives beside its usual outputs.
    pub layers: Vec<usize>,
}

/// How many of the last blocks are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBlocks {
    /// So many, or all where there are fewer.
    UpTo(usize),
    /// So many; fewer are refused.
    Exactly(usize),
}

impl Default for Options {
    /// One file, in float32.
    fn default() -> Self {
        Self {
            checkpoint: weights::Options::default(),
            hub: None,
            precisions: vec![Precision::F32],
            measured: Measured::Not,
            last_blocks: LastBlocks::UpTo(0),
            layers: Vec::new(),
        }
    }
}

/// What the cost of a precision is measured on.
#[derive(Clone, Debug, Default)]
pub enum Measured {
    /// It is not measured.
    #[default]
    Not,
    /// The pictures that this program carries.
    Bundled,
    /// A folder of pictures; those in folders are of the class of its name.
    Folder(PathBuf),
}

/// A model folder that was written.
#[derive(Debug)]
pub struct Exported {
    /// Where it is.
    pub folder: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What became of the checkpoint's tensors.
    pub report: Report,
    /// Further things that the user should know.
    pub notes: Vec<String>,
    /// What lay in the folder and is no export's: it was kept.
    pub kept: Vec<String>,
}

/// Reads the checkpoint at `path` (see [`weights::load`]) and writes it as the model folder `out`.
///
/// The folder appears complete or not at all. Of one that is already there, the files that an export writes are replaced, and the
/// rest is kept; anything else is refused. The model is
/// run once before it is accepted.
///
/// # Errors
/// See [`Error`].
pub fn export(path: &Path, out: &Path, options: &Options) -> Result<Exported, Error> {
    let occupied = fs_err::read_dir(out).map_or(out.exists(), |mut entries| entries.next().is_some());
    if occupied && Manifest::load(out).is_err() {
        return Err(Error::Occupied(out.to_owned()));
    }
    let checkpoint = weights::load(path, &options.checkpoint)?;
    let extras = extras(&checkpoint.backbone, options)?;

    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let work = tempfile::Builder::new().prefix(".dino-export-").tempdir_in(parent)?;
    let folder = work.path().join("new");

    let mut files = Files::new(&checkpoint, &folder, &extras)?;
    files.manifest.source.hub.clone_from(&options.hub);
    for precision in options.precisions.iter().copied() {
        files.write(precision)?;
    }
    let mut notes = match &options.measured {
        Measured::Not => Vec::new(),
        Measured::Bundled => measure(&mut files, &Pictures::bundled(), work.path())?,
        Measured::Folder(pictures) => measure(&mut files, &Pictures::list(pictures)?, work.path())?,
    };
    notes.extend(checkpoint.transform_note.clone());
    let manifest = files.manifest;

    let mut kept = Vec::new();
    if occupied {
        kept = keep_others(out, &folder)?;
        let old = work.path().join("old");
        fs_err::rename(out, &old)?;
        if let Err(error) = fs_err::rename(&folder, out) {
            fs_err::rename(&old, out)?;
            return Err(error.into());
        }
    } else {
        fs_err::rename(&folder, out)?;
    }
    Ok(Exported { folder: out.to_owned(), manifest, report: checkpoint.report, notes, kept })
}

/// What the graph gives beside its usual outputs, where the network has it.
fn extras(backbone: &Backbone, options: &Options) -> Result<Extras, Error> {
    let Backbone::Vit(vit) = backbone else {
        return match (options.last_blocks, options.layers.as_slice()) {
            (LastBlocks::UpTo(_) | LastBlocks::Exactly(0), []) => Ok(Extras::default()),
            (_, []) => Err(Error::NoBlocks("--last-blocks")),
            _ => Err(Error::NoBlocks("--layers")),
        };
    };
    let depth = vit.blocks.len();
    let last_blocks = match options.last_blocks {
        LastBlocks::UpTo(asked) => asked.min(depth),
        LastBlocks::Exactly(asked) if asked > depth => return Err(Error::LastBlocks { asked, depth }),
        LastBlocks::Exactly(asked) => asked,
    };
    let layers: BTreeSet<usize> = options.layers.iter().copied().collect();
    match layers.iter().find(|layer| !(1..=depth).contains(*layer)) {
        Some(&asked) => Err(Error::Layer { asked, depth }),
        None => Ok(Extras { last_blocks, layers }),
    }
}

/// Copies what lies in the folder `old` and is no export's into `new`: heads, for example. Returns its names, in their order.
fn keep_others(old: &Path, new: &Path) -> Result<Vec<String>, Error> {
    let written = [Precision::F32, Precision::F16, Precision::Int8].map(file_name);
    let mut kept = Vec::new();
    for entry in walkdir::WalkDir::new(old).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(std::io::Error::from)?;
        let name = entry.path().strip_prefix(old).unwrap_or(entry.path());
        let top = name.components().next().and_then(|part| part.as_os_str().to_str()).unwrap_or_default();
        if written.contains(&top) || top == Manifest::FILE_NAME {
            continue;
        }
        if entry.depth() == 1 {
            kept.push(name.display().to_string());
        }
        let target = new.join(name);
        if entry.file_type().is_dir() {
            fs_err::create_dir_all(&target)?;
        } else if entry.path_is_symlink() {
            fs_err::os::unix::fs::symlink(fs_err::read_link(entry.path())?, &target)?;
        } else {
            fs_err::copy(entry.path(), &target)?;
        }
    }
    Ok(kept)
}

/// A model folder that is being written.
struct Files<'a> {
    checkpoint: &'a Checkpoint,
    folder: &'a Path,
    extras: &'a Extras,
    manifest: Manifest,
    /// The transformer in the form that is written in 8 bits.
    int8: Option<(Backbone, onnx::Plan)>,
}

impl<'a> Files<'a> {
    fn new(checkpoint: &'a Checkpoint, folder: &'a Path, extras: &'a Extras) -> Result<Self, Error> {
        fs_err::create_dir(folder)?;
        let mut manifest = manifest(checkpoint, BTreeMap::new());
        manifest.last_blocks = extras.last_blocks as u32;
        manifest.layers = extras.layers.iter().map(|layer| *layer as u32).collect();
        Ok(Self { checkpoint, folder, extras, manifest, int8: None })
    }

    /// Writes the ONNX file of a precision, tries it, and writes the manifest with it.
    fn write(&mut self, precision: Precision) -> Result<(), Error> {
        let name = file_name(precision).to_owned();
        let model = self.encode(precision)?;
        fs_err::write(self.folder.join(&name), &model)?;
        let file = File { name, sha256: dino_vision::model::sha256(&model), data: None, cost: None };
        self.manifest.files.insert(precision.as_str().to_owned(), file);
        self.save()?;
        try_model(self.folder, &self.manifest, precision)
    }

    fn encode(&mut self, precision: Precision) -> Result<Vec<u8>, Error> {
        let (backbone, format) = match (precision, &self.checkpoint.backbone) {
            (Precision::F32, backbone) => (backbone, Format::F32),
            (Precision::F16, backbone) => (backbone, Format::F16),
            (Precision::Int8, Backbone::Resnet(_)) => return Err(onnx::Error::Int8Resnet.into()),
            (Precision::Int8, Backbone::Vit(vit)) => {
                if self.int8.is_none() {
                    let (vit, plan) = int8::fit(vit, &self.manifest)?;
                    self.int8 = Some((Backbone::Vit(vit), plan));
                }
                let (backbone, plan) = self.int8.as_ref().expect("it was just made");
                (backbone, Format::Int8(plan))
            }
        };
        Ok(onnx::encode(backbone, format, self.extras)?)
    }

    fn save(&self) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(&self.manifest).map_err(std::io::Error::from)?;
        Ok(fs_err::write(self.folder.join("manifest.json"), json)?)
    }

    /// Puts the cost of a precision into the manifest.
    fn set_cost(&mut self, precision: Precision, cost: Cost) -> Result<(), Error> {
        if let Some(file) = self.manifest.files.get_mut(precision.as_str()) {
            file.cost = Some(cost);
        }
        self.save()
    }
}

/// Puts the cost of each narrow precision into the manifest. Where 8 bits lose too much, the layers that lose most go back to
/// float32. Returns what the user should know.
fn measure(files: &mut Files<'_>, pictures: &Pictures, work: &Path) -> Result<Vec<String>, Error> {
    let present = |precision: &Precision| files.manifest.files.contains_key(precision.as_str());
    let narrow: Vec<_> = [Precision::F16, Precision::Int8].into_iter().filter(present).collect();
    if narrow.is_empty() {
        return Ok(Vec::new());
    }
    // The reference is needed even where it is not wanted.
    let reference = if present(&Precision::F32) {
        Cow::Borrowed(files.folder)
    } else {
        let folder = work.join("reference");
        match Files::new(files.checkpoint, &folder, &Extras::default())?.write(Precision::F32) {
            Err(Error::Graph(onnx::Error::TooLarge(_))) => {
                return Ok(vec!["not measured: float32, which the others are compared with, does not fit into one file".to_owned()]);
            }
            written => written?,
        }
        Cow::Owned(folder)
    };
    let exact = pictures.embed(&reference, Precision::F32)?;
    let mut notes = Vec::new();
    for precision in narrow {
        let mut cost = pictures.compare(&exact, &pictures.embed(files.folder, precision)?)?;
        if precision == Precision::Int8 {
            while !int8::is_enough(&cost) && files.int8.as_mut().is_some_and(|(_, plan)| int8::widen(plan)) {
                files.write(precision)?;
                cost = pictures.compare(&exact, &pictures.embed(files.folder, precision)?)?;
            }
            let kept = files.int8.as_ref().map_or(0, |(_, plan)| plan.floats());
            if kept > 0 {
                notes.push(format!("int8: {kept} matrix products stay in float32, because 8 bits lose too much in them"));
            }
            if !int8::is_enough(&cost) {
                notes
                    .push("int8 costs this model much of what it tells apart, see the figures: f16 or f32 is the better choice".to_owned());
            }
        }
        files.set_cost(precision, cost)?;
    }
    Ok(notes)
}

/// Name of a precision's ONNX file.
fn file_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "model.onnx",
        Precision::F16 => "model.f16.onnx",
        Precision::Int8 => "model.int8.onnx",
    }
}

fn manifest(checkpoint: &Checkpoint, files: BTreeMap<String, File>) -> Manifest {
    let numbers = match &checkpoint.backbone {
        Backbone::Vit(vit) => [vit.patch_size, vit.dim, vit.blocks.len(), vit.heads, vit.registers()],
        // The feature map has one position for each 32 pixels.
        Backbone::Resnet(resnet) => [32, resnet.dim, resnet.stages.iter().map(Vec::len).sum(), 0, 0],
    };
    let [patch_size, dim, depth, heads, registers] = numbers.map(|number| number as u32);
    let positions = match &checkpoint.backbone {
        Backbone::Vit(vit) => match vit.positions {
            Positions::Learned { interpolation, .. } => interpolation.name(),
            Positions::Rotary { .. } => "rotary",
        },
        Backbone::Resnet(_) => "none",
    };
    Manifest {
        format: 1,
        architecture: checkpoint.architecture.to_owned(),
        patch_size,
        dim,
        depth,
        heads,
        registers,
        last_blocks: 0,
        layers: Vec::new(),
        static_size: None,
        position_interpolation: positions.to_owned(),
        transform: checkpoint.transform.clone(),
        source: Source {
            file: checkpoint.file.clone(),
            layout: checkpoint.layout.to_owned(),
            sha256: checkpoint.sha256.clone(),
            hub: None,
        },
        files,
        made_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Runs the model once on a picture of noise and refuses it if any answer is no number.
fn try_model(folder: &Path, manifest: &Manifest, precision: Precision) -> Result<(), Error> {
    let side = manifest.patch_size as usize;
    // A pattern whose period the patches do not share, on a grid that is not square.
    let pixels = Array4::from_shape_fn((1, 3, 2 * side, 3 * side), |(_, channel, row, column)| {
        ((channel * 7919 + row * 104_729 + column * 1_299_709) % 1009) as f32 / 252.0 - 2.0
    });
    let options = SessionOptions { device: Device::Cpu, precision, ..SessionOptions::default() };
    for mut session in Model::open(folder)?.sessions(&options, 1)? {
        let outputs = session.run(pixels.view())?;
        for (name, finite) in [
            ("last_hidden_state", outputs.last_hidden_state.is_none_or(|array| finite(&array))),
            ("attention", outputs.attention.is_none_or(|array| finite(&array))),
            ("keys", outputs.keys.is_none_or(|array| finite(&array))),
            ("embedding", outputs.embedding.is_none_or(|array| finite(&array))),
            ("feature_map", outputs.feature_map.is_none_or(|array| finite(&array))),
            ("last_blocks", outputs.last_blocks.is_none_or(|array| finite(&array))),
        ] {
            if !finite {
                return Err(Error::NotFinite(name));
            }
        }
    }
    Ok(())
}

fn finite<D: Dimension>(array: &Array<f32, D>) -> bool {
    array.iter().all(|number| number.is_finite())
}
