//! The models that are served, and a picture's way through one of them: decode, transform, queue, outputs.
//!
//! ```no_run
//! use clap::{Args, Command, FromArgMatches};
//! use dino_server::serving::{Options, Registry};
//!
//! let flags = ["serve", "--model", "demo=models/demo", "--device", "cpu"];
//! let matches = Options::augment_args(Command::new("serve")).try_get_matches_from(flags)?;
//! let models = Registry::load(Options::from_arg_matches(&matches)?)?;
//! assert_eq!(models.default().name(), "demo");
//! assert!(models.get(Some("other")).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod heads;
mod options;
mod pool;
mod registry;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use image::RgbImage;
use ndarray::{Array2, Array3, Axis};

use crate::traces::step;
use dino_vision::{
    agreement::Agreement,
    batch::{Batcher, Failure, Health},
    embedding::{self, EmbeddingError, Pooling},
    head::LinearHead,
    media::{self, DecodeError},
    model::{Device, Manifest, Outputs, Precision},
    transform::PatchGrid,
    unicode::nfc,
};

pub use heads::{HeadsError, UnknownHead};
pub use options::{Named, Options, OptionsError};
pub use pool::{Panicked, Pool};
pub use registry::{LoadError, Registry, ReloadError, UnknownModel};

/// Pooling of the vectors that collections hold.
pub const COLLECTION_POOLING: Pooling = Pooling::Cls;

/// One loaded model with its workers.
pub struct Served {
    name: String,
    manifest: Manifest,
    fingerprint: String,
    device: Device,
    agreement: Option<Agreement>,
    precision: Precision,
    outputs: Vec<&'static str>,
    layers: Vec<u32>,
    only_size: Option<(u32, u32)>,
    max_in_flight: usize,
    heads: BTreeMap<String, Arc<LinearHead>>,
    batcher: Batcher<Outputs>,
}

/// What a model inferred from one picture.
pub struct Inferred {
    /// Outputs with B = 1.
    pub outputs: Outputs,
    /// (width, height) of the picture itself, upright.
    pub size: (u32, u32),
    /// (height, width) of the model's input.
    pub input: (usize, usize),
    /// Time for decoding.
    pub decoded: Duration,
    /// Time for resampling and normalising.
    pub transformed: Duration,
    /// Time that the picture waited for a worker.
    pub waited: Duration,
    /// Time of the run.
    pub ran: Duration,
    /// Pictures that ran together.
    pub batch: usize,
}

/// Why nothing was inferred from a picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Its bytes are no picture that is read here.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Its preparation panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// It was not run.
    #[error(transparent)]
    Run(#[from] Failure),
}

impl Served {
    /// What requests call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its folder says of it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the vectors of its collections depend on.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where it really runs.
    pub fn device(&self) -> Device {
        self.device
    }

    /// How near its device's outputs are to those of ONNX Runtime's CPU; `None` on that CPU itself.
    pub fn agreement(&self) -> Option<&Agreement> {
        self.agreement.as_ref()
    }

    /// Which of its files runs.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Names of the outputs that its graph has.
    pub fn outputs(&self) -> &[&'static str] {
        &self.outputs
    }

    /// Blocks whose tokens its graph gives beside those of the last one.
    pub fn layers(&self) -> &[u32] {
        &self.layers
    }

    /// All that the embedding of a picture's bytes depends on: the weights, the transform and the program's way of decoding, the file and
    /// the kind of device that run, and which tokens become the vector.
    pub fn embedding_recipe(&self, pooling: Pooling, layer: Option<u32>) -> String {
        let manifest = &self.manifest;
        let file = manifest.files.get(self.precision.as_str());
        let data = file.and_then(|file| file.data.as_ref()).map_or("", |data| &data.sha256);
        let file = file.map_or("", |file| &file.sha256);
        let (version, source) = (env!("CARGO_PKG_VERSION"), &manifest.source.sha256);
        let transform = serde_json::to_string(&manifest.transform).expect("a transform is numbers and names");
        let (device, precision, registers, patch) = (self.device.kind(), self.precision, manifest.registers, manifest.patch_size);
        format!("{version} {source} {file} {data} {transform} {registers} {patch} {precision} {device} {pooling} {layer:?}")
    }

    /// What brings all of a picture to the model's input, with its patches: the longer side about `longer_side` pixels, or the one
    /// size that the model takes.
    pub fn whole_picture(&self, longer_side: u32) -> impl Fn(&RgbImage) -> (Array3<f32>, PatchGrid) + Clone + Send + use<> {
        let (transform, patch, only_size) = (self.manifest.transform.clone(), self.manifest.patch_size, self.only_size);
        move |picture| transform.whole_picture_within(picture, only_size, longer_side, patch)
    }

    /// The linear heads on its features, by name.
    pub fn heads(&self) -> &BTreeMap<String, Arc<LinearHead>> {
        &self.heads
    }

    /// The head of that name, in whatever Unicode form it is written.
    pub fn head(&self, name: &str) -> Option<&Arc<LinearHead>> {
        self.heads.get(&*nfc(name))
    }

    /// State of its workers.
    pub fn health(&self) -> Health {
        self.batcher.health()
    }

    /// Pictures that wait for a worker.
    pub fn waiting(&self) -> usize {
        self.batcher.waiting()
    }

    /// Pictures of one request that are in work at once: as many as keep the workers busy.
    pub fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }

    /// Patches of a picture that was inferred.
    pub fn grid(&self, inferred: &Inferred) -> PatchGrid {
        let patch = (self.manifest.patch_size as usize).max(1);
        PatchGrid { rows: inferred.input.0 / patch, columns: inferred.input.1 / patch }
    }

    /// The vector `[dim]` of a picture that was inferred, as collections hold it.
    ///
    /// # Errors
    /// When the model lacks the output.
    pub fn collection_vector(&self, inferred: &Inferred) -> Result<Vec<f32>, EmbeddingError> {
        let vector = embedding::pool(&inferred.outputs, self.manifest.registers as usize, COLLECTION_POOLING)?;
        Ok(vector.into_flat().to_vec())
    }

    /// The patch tokens `[patches, dim]` of a picture that was inferred, after the block `layer` or the last one, and their grid: of a
    /// convolutional network the cells of its feature map.
    ///
    /// # Errors
    /// When the model lacks the output or the layer.
    pub fn patches(&self, inferred: &Inferred, layer: Option<u32>) -> Result<(Array2<f32>, PatchGrid), EmbeddingError> {
        let tokens = embedding::pool_layer(&inferred.outputs, layer, self.manifest.registers as usize, Pooling::Patches)?;
        let grid = match (&inferred.outputs.last_hidden_state, &inferred.outputs.feature_map) {
            (None, Some(map)) => PatchGrid { rows: map.dim().2, columns: map.dim().3 },
            _ => self.grid(inferred),
        };
        Ok((tokens.index_axis_move(Axis(0), 0), grid))
    }

    /// Most patches of a picture whose longer side becomes about `longer_side` pixels.
    pub fn most_patches(&self, longer_side: u32) -> usize {
        let patch = self.manifest.patch_size.max(1);
        match self.only_size {
            None => PatchGrid::of_picture((1, 1), longer_side, patch).len(),
            Some((height, width)) => ((height / patch) * (width / patch)) as usize,
        }
    }

    /// The longer side in pixels of what the model sees of pictures whose longer side becomes about `longer_side`.
    pub fn input_side(&self, longer_side: u32) -> u32 {
        self.only_size.map_or(longer_side, |(height, width)| height.max(width))
    }

    /// Decodes one picture, brings it to the model's input `[3, H, W]` with `prepare`, and runs it. What `prepare` makes
    /// beside the input is handed through.
    ///
    /// # Errors
    /// See [`PictureError`].
    pub async fn infer<P, X>(
        &self,
        pool: &Pool,
        bytes: Bytes,
        limits: media::Limits,
        prepare: P,
        deadline: tokio::time::Instant,
    ) -> Result<(Inferred, X), PictureError>
    where
        P: FnOnce(&RgbImage) -> (Array3<f32>, X) + Send + 'static,
        X: Send + 'static,
    {
        let work = move || {
            let (start, began) = (SystemTime::now(), Instant::now());
            let picture = media::decode(&bytes, &limits)?;
            let decoded = began.elapsed();
            let (input, beside) = prepare(&picture);
            let transformed = began.elapsed().saturating_sub(decoded);
            Ok::<_, DecodeError>((input, beside, picture.dimensions(), start, [decoded, transformed]))
        };
        let (input, beside, size, start, [decoded, transformed]) = pool.run(work).await??;
        step("decode", start, decoded, []);
        step("transform", start + decoded, transformed, []);
        let (_, height, width) = input.dim();
        let start = SystemTime::now();
        let answer = self.batcher.run(input, deadline).await?;
        step("queue", start, answer.waited, []);
        step(
            "infer",
            start + answer.waited,
            answer.ran,
            [("dino.model", self.name.clone().into()), ("dino.batch", (answer.batch as i64).into())],
        );
        let inferred = Inferred {
            outputs: answer.output,
            size,
            input: (height, width),
            decoded,
            transformed,
            waited: answer.waited,
            ran: answer.ran,
            batch: answer.batch,
        };
        Ok((inferred, beside))
    }
}
