//! Turns a checkpoint into a model folder.

mod cost;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dino_server::bulk;
use dino_server::model::manifest::{File, Manifest, Source};
use dino_server::model::{Device, Model, ModelError, Precision, SessionOptions};
use ndarray::{Array, Array4, Dimension};

use crate::checkpoint::{self, Backbone, Checkpoint, Positions, Report};
use crate::onnx;
pub use cost::Cost;
use cost::Pictures;

/// Why a checkpoint was not exported. Nothing is left at the place of the model folder in any case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The backbone cannot be written as a graph of this precision.
    #[error(transparent)]
    Graph(#[from] onnx::Error),
    /// The graph was tried, and it does not run, or ONNX Runtime is missing.
    #[error("the exported model cannot be tried: {0}")]
    Trial(#[from] ModelError),
    /// The graph was tried, and its answers are no numbers.
    #[error("the exported model answers NaN or infinite values in {0}, so the checkpoint is broken; nothing was written")]
    NotFinite(&'static str),
    /// There are too few pictures to measure with.
    #[error("{} has {found} pictures that can be read; at least {needed} are needed to measure with", folder.display())]
    Pictures {
        /// Where they were looked for.
        folder: PathBuf,
        /// How many there are.
        found: usize,
        /// How many there have to be.
        needed: usize,
    },
    /// The model failed on a picture to measure with.
    #[error("the exported model fails on a picture: {0}")]
    Measure(#[from] bulk::Error),
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
    pub checkpoint: checkpoint::Options,
    /// One ONNX file is written for each.
    pub precisions: Vec<Precision>,
    /// Pictures to measure with what each precision but float32 costs. Those in folders are of the class of its name.
    pub pictures: Option<PathBuf>,
    /// Blocks, counted from the last, whose CLS tokens the graph gives beside its usual outputs; at most all of them.
    pub last_blocks: usize,
}

impl Default for Options {
    /// One file, in float32.
    fn default() -> Self {
        Self { checkpoint: checkpoint::Options::default(), precisions: vec![Precision::F32], pictures: None, last_blocks: 0 }
    }
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
}

/// Reads the checkpoint at `path` (see [`checkpoint::load`]) and writes it as the model folder `out`.
///
/// The folder appears complete or not at all. One that is already there is replaced, anything else is not. The model is
/// run once before it is accepted.
///
/// # Errors
/// See [`Error`].
pub fn export(path: &Path, out: &Path, options: &Options) -> Result<Exported, Error> {
    let occupied = fs_err::read_dir(out).map_or(out.exists(), |mut entries| entries.next().is_some());
    if occupied && Manifest::load(out).is_err() {
        return Err(Error::Occupied(out.to_owned()));
    }
    let checkpoint = checkpoint::load(path, options.checkpoint)?;

    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let work = tempfile::Builder::new().prefix(".dino-export-").tempdir_in(parent)?;
    let folder = work.path().join("new");

    let mut manifest = write(&checkpoint, &folder, &options.precisions, options.last_blocks)?;
    for precision in options.precisions.iter().copied() {
        try_model(&folder, &manifest, precision)?;
    }
    if let Some(pictures) = &options.pictures {
        measure(&checkpoint, &folder, &mut manifest, &Pictures::list(pictures)?, work.path())?;
        write_manifest(&folder, &manifest)?;
    }

    if occupied {
        let old = work.path().join("old");
        fs_err::rename(out, &old)?;
        if let Err(error) = fs_err::rename(&folder, out) {
            fs_err::rename(&old, out)?;
            return Err(error.into());
        }
    } else {
        fs_err::rename(&folder, out)?;
    }
    Ok(Exported { folder: out.to_owned(), manifest, report: checkpoint.report })
}

/// Writes the ONNX files and the manifest.
fn write(checkpoint: &Checkpoint, folder: &Path, precisions: &[Precision], last_blocks: usize) -> Result<Manifest, Error> {
    fs_err::create_dir(folder)?;
    let mut files = BTreeMap::new();
    let last_blocks = match &checkpoint.backbone {
        Backbone::Vit(vit) => last_blocks.min(vit.blocks.len()),
        Backbone::Resnet(_) => 0,
    };
    for precision in precisions.iter().copied() {
        let name = file_name(precision).to_owned();
        let model = onnx::encode(&checkpoint.backbone, precision, last_blocks)?;
        fs_err::write(folder.join(&name), &model)?;
        let file = File { name, sha256: dino_server::model::sha256(&model), cost: None };
        files.insert(precision.as_str().to_owned(), file);
    }
    let manifest = Manifest { last_blocks: last_blocks as u32, ..manifest(checkpoint, files) };
    write_manifest(folder, &manifest)?;
    Ok(manifest)
}

fn write_manifest(folder: &Path, manifest: &Manifest) -> Result<(), Error> {
    let json = serde_json::to_vec_pretty(manifest).map_err(std::io::Error::from)?;
    Ok(fs_err::write(folder.join("manifest.json"), json)?)
}

/// Puts the cost of each narrow precision into the manifest.
fn measure(checkpoint: &Checkpoint, folder: &Path, manifest: &mut Manifest, pictures: &Pictures, work: &Path) -> Result<(), Error> {
    let narrow = [Precision::F16, Precision::Int8].into_iter().filter(|precision| manifest.files.contains_key(precision.as_str()));
    let narrow: Vec<_> = narrow.collect();
    if narrow.is_empty() {
        return Ok(());
    }
    // The reference is needed even where it is not wanted.
    let exact = if manifest.files.contains_key(Precision::F32.as_str()) {
        pictures.embed(folder, Precision::F32)?
    } else {
        let reference = work.join("reference");
        write(checkpoint, &reference, &[Precision::F32], 0)?;
        pictures.embed(&reference, Precision::F32)?
    };
    for precision in narrow {
        let cost = pictures.compare(&exact, &pictures.embed(folder, precision)?)?;
        let cost = serde_json::to_value(cost).map_err(std::io::Error::from)?;
        if let Some(file) = manifest.files.get_mut(precision.as_str()) {
            file.cost = Some(cost);
        }
    }
    Ok(())
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
        position_interpolation: positions.to_owned(),
        transform: checkpoint.transform.clone(),
        source: Source { file: checkpoint.file.clone(), layout: checkpoint.layout.to_owned(), sha256: checkpoint.sha256.clone() },
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
