//! A model folder, or a plain ONNX file of others: its manifest and its ONNX sessions.
//!
//! [`Model::open`] reads the manifest, or finds out what one would say. [`Model::sessions`] starts as many sessions as there are
//! workers: a session runs one batch at a time and belongs to one worker.
//!
//! ```
//! use dino_vision::embedding::Pooling;
//! use dino_vision::model::{Model, ModelError, SessionOptions};
//! use ndarray::{Array4, ArrayView4};
//!
//! /// The CLS tokens `[B, D]` of normalised pixels `[B, 3, H, W]`; needs ONNX Runtime.
//! fn cls(model: &Model, pixels: ArrayView4<'_, f32>) -> Result<Option<ndarray::Array2<f32>>, ModelError> {
//!     let mut session = model.sessions(&SessionOptions::default(), 1)?.remove(0);
//!     Ok(session.run(pixels)?.last_hidden_state.map(|tokens| tokens.slice_move(ndarray::s![.., 0, ..])))
//! }
//!
//! let model = Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-model").as_ref())?;
//! assert_eq!((model.manifest().dim, model.manifest().patch_size), (32, 8));
//! // Vectors of the CLS token and means of patches are no vectors of one kind.
//! assert_ne!(model.fingerprint(Pooling::Cls), model.fingerprint(Pooling::Mean));
//! # Ok::<(), ModelError>(())
//! ```

mod device;
mod external_data;
mod fingerprint;
pub mod manifest;
mod outputs;
mod pinned;
mod plain;
mod plugin;
mod raw_session;
mod replace;
pub mod runtime;
mod session;

use std::path::{Path, PathBuf};

use fs_err as fs;

pub use device::{Accelerator, Device, Hardware, Precision, Shapes};
pub use fingerprint::sha256;
pub use manifest::{Manifest, ManifestError};
pub use outputs::{OUTPUTS, Outputs};
pub use raw_session::RawSession;
pub(crate) use replace::replace;
pub use runtime::RuntimeError;
pub use session::{Session, SessionOptions, devices};

use crate::links;
use crate::pooling::Pooling;
use external_data::{DataFile, Loaded};
use plain::Plain;
use session::Graph;

/// A model that has been read and checked, but not loaded.
#[derive(Clone, Debug)]
pub struct Model {
    path: PathBuf,
    manifest: Manifest,
    /// What is known of a plain file; `None` for a folder.
    plain: Option<Plain>,
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
    /// The weights that a graph keeps in another file cannot be had.
    #[error("{} has its weights in `{name}`, and {reason}", path.display())]
    Data {
        /// The ONNX file.
        path: PathBuf,
        /// What it calls the other file.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file is a link to nothing.
    #[error("{0}")]
    Link(String),
    /// A plain ONNX file was replaced while it was being loaded.
    #[error("{} was written to while it was being loaded; load it again when it is whole", path.display())]
    Changed {
        /// The ONNX file.
        path: PathBuf,
    },
    /// The device cannot be had.
    #[error("device {device} cannot be used: {reason}; use --device cpu or auto")]
    Device {
        /// What was asked for.
        device: Device,
        /// What ONNX Runtime says.
        reason: String,
    },
    /// The device computes something else than ONNX Runtime's CPU.
    #[error("device {device} {reason}; use --device cpu, or --trust-device to take its answers all the same")]
    Disagrees {
        /// Where it ran.
        device: Device,
        /// What was found.
        reason: String,
    },
    /// ONNX Runtime does not accept the graph, or it has not the inputs and outputs of a vision backbone.
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
    /// The pixels are not of the one size that the graph takes. The caller's fault.
    #[error("the model takes pictures of {} x {} pixels alone, not {} x {}", expected[0], expected[1], found[0], found[1])]
    Size {
        /// Height and width that were given.
        found: [usize; 2],
        /// Height and width that are taken.
        expected: [usize; 2],
    },
    /// A run failed. The model's or the machine's fault.
    #[error("the model failed: {0}")]
    Run(String),
}

impl Model {
    /// Reads and checks `manifest.json` of a model folder. A path that is a file is a plain ONNX file: that is loaded and tried,
    /// to find out what a manifest would say.
    ///
    /// # Errors
    /// [`ModelError::Manifest`] for a folder; for a file everything but [`ModelError::Hash`],
    /// [`ModelError::Changed`] and those of a caller.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if let Some(reason) = [path, &path.join(Manifest::FILE_NAME)].into_iter().find_map(links::broken) {
            return Err(ModelError::Link(reason));
        }
        if path.is_file() {
            let (manifest, plain) = plain::inspect(path)?;
            return Ok(Self { path: path.to_owned(), manifest, plain: Some(plain) });
        }
        Ok(Self { path: path.to_owned(), manifest: Manifest::load(path)?, plain: None })
    }

    /// What the folder says of itself, or what became clear of a file.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What became clear of a plain ONNX file, in words for the user who named it; `None` for a folder, which says it itself.
    pub fn summary(&self) -> Option<&str> {
        self.plain.as_ref().map(|plain| plain.summary.as_str())
    }

    /// (height, width) of the pictures, where the graph takes no others.
    pub fn only_size(&self) -> Option<(u32, u32)> {
        match &self.plain {
            Some(plain) => plain.binding.size.map(|(height, width)| (height as u32, width as u32)),
            None => self.manifest.static_size,
        }
    }

    /// Number of pictures in each run, where a plain ONNX file takes no other. [`Session::run`] takes any number all the same.
    pub fn only_batch(&self) -> Option<usize> {
        self.plain.as_ref()?.binding.batch
    }

    /// The precision that runs where this one is asked for: a plain file has its own and no other.
    pub fn precision(&self, asked: Precision) -> Precision {
        self.plain.as_ref().map_or(asked, |plain| plain.precision)
    }

    /// Loads the file of the precision once, checks its hash, and starts `count` sessions of it. A plain ONNX file, which may have
    /// its weights in others, is hashed after the sessions were started, unless it was read for them: they have the weights of the
    /// fingerprint, or are refused.
    ///
    /// # Errors
    /// Everything but [`ModelError::Input`], [`ModelError::Size`] and [`ModelError::Run`].
    pub fn sessions(&self, options: &SessionOptions, count: usize) -> Result<Vec<Session>, ModelError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if let Some(plain) = &self.plain {
            let changed = || ModelError::Changed { path: self.path.clone() };
            let loaded = if plain.linked { Some(Loaded::read(&self.path)?) } else { None };
            if loaded.as_ref().is_some_and(|loaded| loaded.sha256() != self.manifest.source.sha256) {
                return Err(changed());
            }
            let graph = loaded.as_ref().map_or(Graph::File, |loaded| Graph::Bytes { graph: &loaded.graph, data: &loaded.data });
            let sessions =
                (0..count).map(|_| Session::of_file(graph, &self.path, plain.binding.clone(), options)).collect::<Result<Vec<_>, _>>()?;
            if loaded.is_none() && plain.sha256(&self.path)? != self.manifest.source.sha256 {
                return Err(changed());
            }
            return Ok(sessions);
        }
        let files = &self.manifest.files;
        let file = files.get(options.precision.as_str()).ok_or_else(|| ModelError::NoSuchPrecision {
            folder: self.path.clone(),
            precision: options.precision,
            available: files.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })?;
        let path = self.path.join(&file.name);
        if let Some(reason) = links::broken(&path) {
            return Err(ModelError::Link(reason));
        }
        let graph = fs::read(&path)?;
        let check = |path: &Path, found: String, expected: &str| {
            let expected = expected.to_owned();
            let same = found.eq_ignore_ascii_case(&expected);
            if same { Ok(()) } else { Err(ModelError::Hash { path: path.to_owned(), expected, found }) }
        };
        check(&path, sha256(&graph), &file.sha256)?;
        let listed = |name: &String| file.data.iter().any(|data| data.name == *name);
        if let Some(name) = external_data::names(&path, &graph)?.into_iter().find(|name| !listed(name)) {
            let reason = "manifest.json does not list that file, so that its hash cannot be checked: export the model again".to_owned();
            return Err(ModelError::Data { path, name, reason });
        }
        let data = file.data.iter().map(|data| DataFile::read(&path, &data.name)).collect::<Result<Vec<_>, _>>()?;
        for (read, said) in data.iter().zip(&file.data) {
            check(&self.path.join(&said.name), read.sha256(), &said.sha256)?;
        }
        let graph = Graph::Bytes { graph: &graph, data: &data };
        (0..count).map(|_| Session::of_folder(graph, &path, &self.manifest, options)).collect()
    }

    /// What a collection's vectors depend on, as 32 hex digits: the weights' source, the pooling and the transform.
    /// Not the precision: vectors of the same weights compare across precisions. The source of a plain ONNX file is the file.
    pub fn fingerprint(&self, pooling: Pooling) -> String {
        fingerprint::of(&self.manifest, pooling)
    }
}
