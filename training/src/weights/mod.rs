//! Reads the checkpoints of this project's trainer and of the public releases.
//!
//! [`open`] finds the files and makes a [`Store`] of named tensors, [`load`] recognises the layout by those names and
//! reads it into a [`Backbone`], which no longer knows where it came from.
//!
//! ```
//! use dino_train::weights::{Backbone, Options, load};
//!
//! let checkpoint = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/checkpoints/pth-dino-backbone/dino_vit_pretrain.pth");
//! let checkpoint = load(checkpoint.as_ref(), &Options { heads: Some(4), ..Options::default() })?;
//! let Backbone::Vit(vit) = &checkpoint.backbone else { panic!("it is a transformer") };
//! assert_eq!((checkpoint.layout, vit.dim, vit.patch_size, vit.blocks.len()), ("dino-pth", 32, 8, 2));
//! # Ok::<(), dino_train::weights::Error>(())
//! ```

mod error;
pub(crate) mod hash;
pub mod init;
mod layout;
mod pickle;
pub mod plain_pickle;
mod pth;
mod safe;
mod scope;
mod spec;
mod store;
mod transform;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use dino_vision::links;
use dino_vision::model::manifest::Manifest;
use dino_vision::transform::Transform;
use fs_err::File;
use serde_json::Value as Json;

pub use error::Error;
pub use spec::{
    Activation, Backbone, Block, Conv, Convnext, ConvnextBlock, ConvnextStage, Interpolation, Linear, Mlp, Norm, Positions, Resnet,
    StemLevel, Unit, Vit,
};
pub use store::{Store, Tensor};
pub use transform::TransformOptions;

/// Which of two networks to read from a training checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Key {
    /// The moving average, which DINO evaluates.
    Teacher,
    /// The network that gradients train.
    Student,
}

/// What the caller knows better than the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Attention heads per block.
    pub heads: Option<usize>,
    /// The network to read; by default the teacher where there is one.
    pub key: Option<Key>,
    /// What the names of the backbone's tensors begin with, where a checkpoint holds several.
    pub prefix: Option<String>,
    /// Tensors that are known not to belong to the backbone: a name, or what all their names begin with before a dot.
    pub ignore: Vec<String>,
    /// How a learned table of positions is resampled, where the checkpoint does not say which library's way is meant.
    pub positions: Option<Interpolation>,
    /// Settings of the evaluation transform in place of those that the checkpoint or its folder has.
    pub transform: TransformOptions,
}

/// A checkpoint that was read.
#[derive(Debug)]
pub struct Checkpoint {
    /// The network.
    pub backbone: Backbone,
    /// Its layout, for example `dino-pth`.
    pub layout: &'static str,
    /// Family and kind for the manifest, for example `dinov2-vit`.
    pub architecture: &'static str,
    /// Evaluation transform: the checkpoint's own, that of its `preprocessor_config.json`, or DINO's.
    pub transform: Transform,
    /// What was assumed of the transform, where nothing says it.
    pub transform_note: Option<String>,
    /// Name of the file that the weights came from.
    pub file: String,
    /// SHA-256 of the weights' files in hex.
    pub sha256: String,
    /// What was used and what was left.
    pub report: Report,
}

/// What became of the tensors of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of tensors that the backbone uses.
    pub used: usize,
    /// Tensors that do not belong to the backbone, such as a projection head.
    pub unneeded: Vec<String>,
    /// Choices that were made and the user should know of.
    pub notes: Vec<String>,
}

/// Reads the backbone of the checkpoint at `path`: a file, or a folder with a model or with a training run.
///
/// # Errors
/// [`Error`] says what is wrong with the checkpoint, with every tensor that does not fit.
pub fn load(path: &Path, options: &Options) -> Result<Checkpoint, Error> {
    let file = locate(path)?;
    let store = open(&file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let config = read_json(&folder.join("config.json"))?;
    let preprocessor = read_json(&folder.join("preprocessor_config.json"))?;
    let read = layout::read(&store, config.as_ref(), options)?;
    let damaged = |name: &str, reason: String| Error::Damaged { file: folder.join(name), reason };
    let found = match (&preprocessor, &config) {
        (Some(json), _) => Some(Transform::from_preprocessor(json).map_err(|reason| damaged("preprocessor_config.json", reason))?),
        (None, Some(json)) if read.transform.is_none() => {
            Transform::from_timm(json).transpose().map_err(|reason| damaged("config.json", reason))?
        }
        _ => read.transform,
    };
    let (transform, transform_note) = options.transform.apply(found, &file)?;
    Ok(Checkpoint {
        backbone: read.backbone,
        layout: read.layout,
        architecture: read.architecture,
        transform,
        transform_note,
        file: store::file_name(&file),
        sha256: store.sha256()?,
        report: read.report,
    })
}

/// SHA-256 of the checkpoint at `path`, in hex, as [`load`] gives it, without reading its tensors.
///
/// # Errors
/// If there is no checkpoint, or none that can be opened.
pub fn sha256(path: &Path) -> Result<String, Error> {
    open(&locate(path)?)?.sha256()
}

/// Opens the tensors of one file, whose kind is told by its first bytes, or of all files that an index names.
///
/// # Errors
/// [`Error::Damaged`] and [`Error::Unsupported`] say what is wrong with the file.
pub fn open(path: &Path) -> Result<Store, Error> {
    let mut store = Store::default();
    if path.to_string_lossy().ends_with(".index.json") {
        safe::add_sharded(&mut store, path)?;
    } else {
        open_file(&mut store, path)?;
    }
    Ok(store)
}

fn open_file(store: &mut Store, path: &Path) -> Result<(), Error> {
    whole(path)?;
    let mut first = [0; 14];
    let length = File::open(path)?.take(14).read(&mut first)?;
    match first {
        _ if length == 0 => Err(Error::Damaged { file: path.to_owned(), reason: "it is empty".to_owned() }),
        [b'P', b'K', 3, 4, ..] => pth::add(store, path),
        pth::LEGACY_MAGIC => pth::add_legacy(store, path),
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => safe::add(store, path),
        _ => Err(Error::Unsupported(format!("{} is neither a safetensors file nor one of torch.save (or it is cut)", path.display()))),
    }
}

/// The file to read for a path that may be a folder: a Hugging Face model, a training run, or a lone release file.
fn locate(path: &Path) -> Result<PathBuf, Error> {
    whole(path)?;
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    for name in ["model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin"] {
        let file = path.join(name);
        whole(&file)?;
        if file.exists() {
            return Ok(file);
        }
    }
    let mut files = Vec::new();
    for entry in fs_err::read_dir(path)? {
        files.push(entry?.path());
    }
    let newest = files.iter().filter_map(|file| Some((checkpoint_number(file)?, file))).max();
    if let Some((_, file)) = newest {
        return Ok(file.clone());
    }
    files.retain(|file| file.extension().is_some_and(|kind| kind == "pth" || kind == "pt" || kind == "ckpt"));
    match files.as_slice() {
        [file] => Ok(file.clone()),
        [] if path.join(Manifest::FILE_NAME).is_file() => Err(Error::NotFound {
            path: path.to_owned(),
            reason:
                "it is a model folder, which was exported already: serve it (dino-server serve --model), or give the checkpoint that it \
                     was made from"
                    .to_owned(),
        }),
        [] => Err(Error::NotFound {
            path: path.to_owned(),
            reason: "no model.safetensors, pytorch_model.bin, checkpoint-*.safetensors, .pth, .pt or .ckpt file is in it".to_owned(),
        }),
        _ => Err(Error::NotFound {
            path: path.to_owned(),
            reason: "there are several .pth, .pt or .ckpt files in it; name the one to read".to_owned(),
        }),
    }
}

/// Refuses a link to a file that is gone, which would otherwise count as a file that was never there.
fn whole(path: &Path) -> Result<(), Error> {
    links::broken(path).map_or(Ok(()), |reason| Err(Error::Link(reason)))
}

/// n of `checkpoint-n.safetensors`, the file that training writes. Unfinished files have other names.
fn checkpoint_number(file: &Path) -> Option<u64> {
    file.file_name()?.to_str()?.strip_prefix("checkpoint-")?.strip_suffix(".safetensors")?.parse().ok()
}

fn read_json(path: &Path) -> Result<Option<Json>, Error> {
    whole(path)?;
    if !path.is_file() {
        return Ok(None);
    }
    let json = serde_json::from_slice(&fs_err::read(path)?);
    json.map(Some).map_err(|error| Error::Damaged { file: path.to_owned(), reason: error.to_string() })
}
