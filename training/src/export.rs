//! Turns a checkpoint into a model folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dino_server::model::manifest::{File, Manifest, Source};

use crate::checkpoint::{self, Backbone, Checkpoint, Positions, Report};
use crate::{hash, onnx};

/// Why a checkpoint was not exported. Nothing is left at the place of the model folder in any case.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The weights do not fit into an ONNX file.
    #[error(transparent)]
    TooLarge(#[from] onnx::TooLarge),
    /// The graph was tried, and ONNX Runtime could not run it.
    #[error("the exported model does not run: {0}")]
    Trial(String),
    /// The graph was tried, and its answers are no numbers.
    #[error("the exported model answers NaN or infinite values in {0}, so the checkpoint is broken; nothing was written")]
    NotFinite(String),
    /// There is something else at the place of the model folder.
    #[error("{} exists and is no model folder; it is left as it is, choose another place", .0.display())]
    Occupied(PathBuf),
    /// The model folder cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
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
pub fn export(path: &Path, out: &Path, options: checkpoint::Options) -> Result<Exported, Error> {
    let occupied = fs_err::read_dir(out).map_or(out.exists(), |mut entries| entries.next().is_some());
    if occupied && !is_model_folder(out) {
        return Err(Error::Occupied(out.to_owned()));
    }
    let checkpoint = checkpoint::load(path, options)?;

    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(parent)?;
    let work = tempfile::Builder::new().prefix(".dino-export-").tempdir_in(parent)?;
    let folder = work.path().join("new");
    fs_err::create_dir(&folder)?;

    let model = onnx::encode(&checkpoint.backbone)?;
    let mut files = BTreeMap::new();
    let name = "model.onnx".to_owned();
    fs_err::write(folder.join(&name), &model)?;
    files.insert("f32".to_owned(), File { name, sha256: hash::of_bytes(&model), cost: None });
    drop(model);
    let manifest = manifest(&checkpoint, files);
    let json = serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::from)?;
    fs_err::write(folder.join("manifest.json"), json)?;
    try_model(&folder.join("model.onnx"), manifest.patch_size as usize)?;

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

fn is_model_folder(path: &Path) -> bool {
    let manifest = fs_err::read(path.join("manifest.json")).ok();
    manifest.is_some_and(|bytes| serde_json::from_slice::<Manifest>(&bytes).is_ok())
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
        position_interpolation: positions.to_owned(),
        transform: checkpoint.transform.clone(),
        source: Source { file: checkpoint.file.clone(), layout: checkpoint.layout.to_owned(), sha256: checkpoint.sha256.clone() },
        files,
        made_by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// Runs the model once on a picture of noise and refuses it if any answer is no number.
fn try_model(path: &Path, patch_size: usize) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Trial(error.to_string());
    let environment = onnx::runtime::environment().map_err(|error| failed(&error))?;
    let mut session = ort::session::Session::builder(&environment)
        .and_then(|mut builder| builder.commit_from_file(path))
        .map_err(|error| failed(&error))?;
    let shape = (1, 3, 2 * patch_size, 3 * patch_size);
    // A fixed pattern without a period that the patches could share.
    let pixels = ndarray::Array4::from_shape_fn(shape, |(_, channel, row, column)| {
        ((channel * 7919 + row * 104_729 + column * 1_299_709) % 1009) as f32 / 252.0 - 2.0
    });
    let pixels = ort::value::Tensor::from_array(pixels).map_err(|error| failed(&error))?;
    let outputs = session.run(ort::inputs!["pixel_values" => pixels]).map_err(|error| failed(&error))?;
    for (name, value) in &outputs {
        let (_, data) = value.try_extract_tensor::<f32>().map_err(|error| failed(&error))?;
        if data.iter().any(|number| !number.is_finite()) {
            return Err(Error::NotFinite(name.to_owned()));
        }
    }
    Ok(())
}
