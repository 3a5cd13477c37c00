//! A model folder: its manifest and its ONNX sessions.
//!
//! [`Model::open`] reads the manifest, [`Model::sessions`] starts as many sessions as there are workers: a session
//! runs one batch at a time and belongs to one worker.

mod device;
mod fingerprint;
pub mod manifest;
pub mod runtime;
mod session;

use std::path::{Path, PathBuf};

use fs_err as fs;

pub use device::{Device, Precision};
pub use fingerprint::sha256;
pub use manifest::{Manifest, ManifestError};
pub use runtime::RuntimeError;
pub use session::{Outputs, Session, SessionOptions};

use crate::embedding::Pooling;

/// A model folder that has been read and checked, but not loaded.
#[derive(Clone, Debug)]
pub struct Model {
    folder: PathBuf,
    manifest: Manifest,
}

/// Why a model does not open or does not run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The manifest is missing or wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// ONNX Runtime itself is missing or too old.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The folder has no file of this precision.
    #[error("{} has no {precision} file, only {available}", folder.display())]
    NoSuchPrecision {
        /// The model folder.
        folder: PathBuf,
        /// What was asked for.
        precision: Precision,
        /// What there is.
        available: String,
    },
    /// A file of the folder cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// A file is not the one that the manifest was written for.
    #[error("{} is damaged or was replaced: its SHA-256 is {found}, and manifest.json says {expected}", path.display())]
    Hash {
        /// The ONNX file.
        path: PathBuf,
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The device cannot be had.
    #[error("device {device} cannot be used: {reason}; use --device cpu or auto")]
    Device {
        /// What was asked for.
        device: Device,
        /// What ONNX Runtime says.
        reason: String,
    },
    /// ONNX Runtime does not accept the graph, or it has not the inputs and outputs of a model folder.
    #[error("{} is no model for this server: {reason}", path.display())]
    Graph {
        /// The ONNX file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The pixels have not the shape that the model takes. The caller's fault.
    #[error("the model takes [B, 3, H, W] with B at least 1 and H and W multiples of {patch_size}, not {shape:?}")]
    Input {
        /// Shape that was given.
        shape: [usize; 4],
        /// Side of a patch.
        patch_size: usize,
    },
    /// A run failed. The model's or the machine's fault.
    #[error("the model failed: {0}")]
    Run(String),
}

impl Model {
    /// Reads and checks `manifest.json` of a model folder.
    ///
    /// # Errors
    /// [`ModelError::Manifest`].
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Ok(Self { folder: folder.to_owned(), manifest: Manifest::load(folder)? })
    }

    /// What the folder says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Loads the file of the precision once, checks its hash, and starts `count` sessions of it.
    ///
    /// # Errors
    /// Everything but [`ModelError::Input`] and [`ModelError::Run`].
    pub fn sessions(&self, options: &SessionOptions, count: usize) -> Result<Vec<Session>, ModelError> {
        let files = &self.manifest.files;
        let file = files.get(options.precision.as_str()).ok_or_else(|| ModelError::NoSuchPrecision {
            folder: self.folder.clone(),
            precision: options.precision,
            available: files.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })?;
        let path = self.folder.join(&file.name);
        let graph = fs::read(&path)?;
        let found = sha256(&graph);
        if !found.eq_ignore_ascii_case(&file.sha256) {
            return Err(ModelError::Hash { path, expected: file.sha256.clone(), found });
        }
        (0..count).map(|_| Session::open(&graph, &path, &self.manifest, options)).collect()
    }

    /// What a collection's vectors depend on, as 32 hex digits: the weights' source, the pooling and the transform.
    /// Not the precision: vectors of the same weights compare across precisions.
    pub fn fingerprint(&self, pooling: Pooling) -> String {
        fingerprint::of(&self.manifest, pooling)
    }
}
