//! Turns a checkpoint into a model folder.
//!
//! ```no_run
//! use dino_train::export::{Options, export};
//! use dino_vision::model::Precision;
//!
//! let options = Options { precisions: vec![Precision::F32, Precision::F16], ..Options::default() };
//! let exported = export("dino_deitsmall16_pretrain.pth".as_ref(), "models/small".as_ref(), &options)?;
//! assert_eq!(exported.manifest.architecture, "dino-vit");
//! assert!(exported.folder.join("model.f16.onnx").exists());
//! # Ok::<(), dino_train::export::Error>(())
//! ```

mod cost;
mod folder;
mod int8;
pub mod onnx;
mod pictures;
mod whitening;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dino_vision::bulk;
use dino_vision::model::manifest::{Manifest, Source};
use dino_vision::model::{Model, ModelError, Precision};
use dino_vision::segment::{MaskDefaults, Method, Refine};
use dino_vision::transform::MOST_SIDE;

use crate::process::FreedPagesReturn;
use crate::weights::{self, Backbone, Checkpoint, Positions, Report};
use folder::{Folder, write};
use onnx::Extras;

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
    NotFinite(String),
    /// The checkpoint was read twice, and it was not the same.
    #[error("{} was written to while it was exported; export it again when it is whole", .0.display())]
    Changed(PathBuf),
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
    /// There are too few pictures for whitening.
    #[error(
        "--whiten: {place} has {found} pictures that can be read; at least {needed} are needed, four for each dimension of the embedding"
    )]
    Whitening {
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
    /// Pictures of this size are no whole patches.
    #[error("--static {height},{width}: each side has to be a multiple of {patch} pixels, which are one patch, and at most {MOST_SIDE}")]
    StaticSize {
        /// Height that was asked for.
        height: usize,
        /// Width that was asked for.
        width: usize,
        /// Side of a patch.
        patch: usize,
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
    /// (height, width) in pixels of the only pictures that the graphs take; every multiple of the patch where this is absent.
    pub static_size: Option<(u32, u32)>,
    /// Whether the weights lie in a file beside the graph even where one ONNX file could hold all.
    pub external_data: bool,
    /// Folder of pictures whose embeddings have no correlations left in the exported model. None for embeddings as the
    /// network gives them.
    pub whiten: Option<PathBuf>,
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
            static_size: None,
            external_data: false,
            whiten: None,
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
    /// Files of an earlier export in the folder that this one does not write: they were removed.
    pub removed: Vec<String>,
}

/// Reads the checkpoint at `path` (see [`weights::load`]) and writes it as the model folder `out`.
///
/// The weights are in memory once, in float32, while an ONNX file is written, and not at all while it is tried.
///
/// The folder appears complete or not at all. Of one that is already there, the files that an export writes are replaced, and the
/// rest is kept; anything else is refused. The model is
/// run once before it is accepted.
///
/// # Errors
/// See [`Error`].
pub fn export(path: &Path, out: &Path, options: &Options) -> Result<Exported, Error> {
    let _pages = FreedPagesReturn::begin();
    let occupied = fs_err::read_dir(out).map_or(out.exists(), |mut entries| entries.next().is_some());
    if occupied && Manifest::load(out).is_err() {
        return Err(Error::Occupied(out.to_owned()));
    }
    let mut checkpoint = weights::load(path, &options.checkpoint)?;
    let extras = extras(&checkpoint.backbone, options)?;
    if let Some(size) = options.static_size {
        checkpoint.transform = checkpoint.transform.for_size(size);
    }

    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let work = tempfile::Builder::new().prefix(".dino-export-").tempdir_in(parent)?;
    let folder = work.path().join("new");

    let transform_note = checkpoint.transform_note.clone();
    let report = checkpoint.report.clone();
    let mut files = Folder::create(&folder, manifest(&checkpoint, &extras, options), options.external_data)?;
    let mut notes = write(path, checkpoint, &extras, options, &mut files, work.path())?;
    notes.extend(transform_note);
    let manifest = files.manifest;
    // What the server does when it starts: what is refused there takes no place here.
    Model::open(&folder)?;

    let (mut kept, mut removed) = (Vec::new(), Vec::new());
    if occupied {
        kept = keep_others(out, &folder)?;
        removed = files_of_exports().filter(|name| out.join(name).exists() && !folder.join(name).exists()).collect();
        let old = work.path().join("old");
        fs_err::rename(out, &old)?;
        if let Err(error) = fs_err::rename(&folder, out) {
            fs_err::rename(&old, out)?;
            return Err(error.into());
        }
    } else if let Err(error) = fs_err::rename(&folder, out) {
        // Another process may have exported the same meanwhile, as pods do that share a volume.
        if !Manifest::load(out).is_ok_and(|other| other.source.sha256 == manifest.source.sha256 && other.files == manifest.files) {
            return Err(error.into());
        }
    }
    Ok(Exported { folder: out.to_owned(), manifest, report, notes, kept, removed })
}

/// Whether the model folder `out` holds a model of the checkpoint at `path`, in all of these precisions, and whole. Other settings of
/// the export are not compared.
///
/// # Errors
/// If the checkpoint cannot be read.
pub fn holds(out: &Path, path: &Path, precisions: &[Precision]) -> Result<bool, Error> {
    let Ok(manifest) = Manifest::load(out) else { return Ok(false) };
    let is_whole = |(name, sha256): (&String, &String)| weights::hash::of_files(&[out.join(name)]).is_ok_and(|found| found == *sha256);
    let is_there = |precision: &Precision| {
        let file = manifest.files.get(&precision.to_string());
        file.is_some_and(|file| {
            let data = file.data.iter().map(|data| (&data.name, &data.sha256));
            std::iter::once((&file.name, &file.sha256)).chain(data).all(is_whole)
        })
    };
    Ok(precisions.iter().all(is_there) && manifest.source.sha256 == weights::sha256(path)?)
}

/// What the graph is and gives beyond the usual, where the network has it.
fn extras(backbone: &Backbone, options: &Options) -> Result<Extras, Error> {
    let patch = patch_size(backbone);
    let size = options.static_size.map(|(height, width)| (height as usize, width as usize));
    if let Some((height, width)) = size
        && ![height, width].iter().all(|side| (1..=MOST_SIDE as usize).contains(side) && side.is_multiple_of(patch))
    {
        return Err(Error::StaticSize { height, width, patch });
    }
    let Backbone::Vit(vit) = backbone else {
        if options.whiten.is_some() {
            return Err(Error::NoBlocks("--whiten"));
        }
        return match (options.last_blocks, options.layers.as_slice()) {
            (LastBlocks::UpTo(_) | LastBlocks::Exactly(0), []) => Ok(Extras { size, ..Extras::default() }),
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
        None => Ok(Extras { size, last_blocks, layers, whitening: None }),
    }
}

/// Copies what lies in the folder `old` and is no export's into `new`: heads, for example. Returns its names, in their order.
fn keep_others(old: &Path, new: &Path) -> Result<Vec<String>, Error> {
    let written: Vec<String> = files_of_exports().collect();
    let mut kept = Vec::new();
    for entry in walkdir::WalkDir::new(old).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(std::io::Error::from)?;
        let name = entry.path().strip_prefix(old).unwrap_or(entry.path());
        let top = name.components().next().and_then(|part| part.as_os_str().to_str()).unwrap_or_default();
        if written.iter().any(|name| name == top) || top == Manifest::FILE_NAME {
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

/// Names of the ONNX files, and of their weights, that exports write.
fn files_of_exports() -> impl Iterator<Item = String> {
    let graphs = [Precision::F32, Precision::F16, Precision::Int8].map(file_name);
    graphs.into_iter().flat_map(|name| [name.to_owned(), onnx::data_name(name)])
}

/// Name of a precision's ONNX file.
fn file_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "model.onnx",
        Precision::F16 => "model.f16.onnx",
        Precision::Int8 => "model.int8.onnx",
    }
}

/// Side of a patch; of a convolutional network the stride of its feature map.
fn patch_size(backbone: &Backbone) -> usize {
    match backbone {
        Backbone::Vit(vit) => vit.patch_size,
        Backbone::Resnet(_) | Backbone::Convnext(_) => 32,
    }
}

/// How masks are best made with public weights, where their publications say so.
///
/// DINO's is the attention, as for all models that say nothing. Of DINOv2 and DINOv3 the attention of the last block outlines little;
/// `TokenCut` is what DINOv3's authors discover objects with (Siméoni et al. 2025, 6.1.4). Without registers, DINOv2's patches have
/// outliers that every method stumbles over (Darcet et al. 2024).
fn published_masks(architecture: &str, registers: u32) -> Option<MaskDefaults> {
    let is_known = matches!((architecture, registers), ("dinov3-vit", _) | ("dinov2-vit", 1..));
    is_known.then_some(MaskDefaults { method: Method::Ncut, size: 480, threshold: None, refine: Refine::None, figures: None })
}

fn manifest(checkpoint: &Checkpoint, extras: &Extras, options: &Options) -> Manifest {
    let numbers = match &checkpoint.backbone {
        Backbone::Vit(vit) => [vit.dim, vit.blocks.len(), vit.heads, vit.registers()],
        Backbone::Resnet(resnet) => [resnet.dim, resnet.stages.iter().map(Vec::len).sum(), 0, 0],
        Backbone::Convnext(network) => [network.dim(), network.stages.iter().map(|stage| stage.blocks.len()).sum(), 0, 0],
    };
    let [dim, depth, heads, registers] = numbers.map(|number| number as u32);
    let positions = match &checkpoint.backbone {
        Backbone::Vit(vit) => match vit.positions {
            Positions::Learned { interpolation, .. } => interpolation.name(),
            Positions::Rotary { .. } => "rotary",
        },
        Backbone::Resnet(_) | Backbone::Convnext(_) => "none",
    };
    Manifest {
        format: 1,
        architecture: checkpoint.architecture.to_owned(),
        patch_size: patch_size(&checkpoint.backbone) as u32,
        dim,
        depth,
        heads,
        registers,
        last_blocks: extras.last_blocks as u32,
        layers: extras.layers.iter().map(|layer| *layer as u32).collect(),
        static_size: options.static_size,
        whitening: None,
        segment: published_masks(checkpoint.architecture, registers),
        position_interpolation: positions.to_owned(),
        transform: checkpoint.transform.clone(),
        source: Source {
            file: checkpoint.file.clone(),
            layout: checkpoint.layout.to_owned(),
            sha256: checkpoint.sha256.clone(),
            hub: options.hub.clone(),
        },
        files: BTreeMap::new(),
        made_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}
