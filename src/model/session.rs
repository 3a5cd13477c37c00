//! One ONNX Runtime session: pixels in, named outputs out.

use std::fmt;
use std::path::Path;

use ndarray::{Array, Array2, Array3, Array4, ArrayView4, Dimension};
use ort::ep::{self, ExecutionProvider};
use ort::session::SessionOutputs;
use ort::value::TensorRef;

use super::{Device, Manifest, ModelError, Precision, runtime};

/// Name of the graph's input.
const INPUT: &str = "pixel_values";
/// Names of the outputs that a graph may have.
const OUTPUTS: [&str; 6] = ["last_hidden_state", "attention", "keys", "embedding", "feature_map", "last_blocks"];

/// How sessions are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// What runs the graph.
    pub device: Device,
    /// Which file of the folder.
    pub precision: Precision,
    /// Threads of each session. On a CPU several sessions of one thread each give more pictures per second than one
    /// session of several.
    pub threads: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { device: Device::default(), precision: Precision::default(), threads: 1 }
    }
}

/// What a model computed for a batch of B pictures; `None` where its graph has no such output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs {
    /// `[B, 1 + registers + patches, D]`, after the final norm; patches row by row.
    pub last_hidden_state: Option<Array3<f32>>,
    /// `[B, heads, 1 + registers + patches]`: how the last block's CLS token attends, after softmax.
    pub attention: Option<Array3<f32>>,
    /// `[B, patches, D]`: keys of the last block, heads side by side.
    pub keys: Option<Array3<f32>>,
    /// `[B, D]`: the pooled features of a ResNet.
    pub embedding: Option<Array2<f32>>,
    /// `[B, D, h, w]`: the feature map of a ResNet.
    pub feature_map: Option<Array4<f32>>,
    /// `[B, n, D]`: CLS after each of the last n blocks, normalised by the final norm, in the order of the blocks.
    pub last_blocks: Option<Array3<f32>>,
}

/// A loaded graph. It runs one batch at a time: give each worker one of its own.
pub struct Session {
    inner: ort::session::Session,
    device: Device,
    patch_size: usize,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Session {
    /// Starts a session of `graph`, the bytes of the file at `path`.
    pub(super) fn open(graph: &[u8], path: &Path, manifest: &Manifest, options: &SessionOptions) -> Result<Self, ModelError> {
        let (inner, device) = match options.device {
            Device::Auto => open_best(graph, path, options.threads)?,
            device => (open_on(device, graph, path, options.threads)?, device),
        };
        let reject = |reason| Err(ModelError::Graph { path: path.to_owned(), reason });
        if inner.inputs().len() != 1 || inner.inputs()[0].name() != INPUT {
            return reject(format!("it has to have one input, `{INPUT}`"));
        }
        if !inner.outputs().iter().any(|output| OUTPUTS.contains(&output.name())) {
            return reject(format!("it has none of the outputs {}", OUTPUTS.join(", ")));
        }
        Ok(Self { inner, device, patch_size: manifest.patch_size as usize })
    }

    /// The device that really runs the graph; never [`Device::Auto`].
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether the graph has this output.
    pub fn has_output(&self, name: &str) -> bool {
        self.inner.outputs().iter().any(|output| output.name() == name)
    }

    /// Runs a batch of normalised pixels, `[B, 3, H, W]`, with H and W multiples of the patch.
    ///
    /// # Errors
    /// [`ModelError::Input`] for another shape, [`ModelError::Run`] where the graph fails.
    pub fn run(&mut self, pixels: ArrayView4<'_, f32>) -> Result<Outputs, ModelError> {
        let (batch, channels, height, width) = pixels.dim();
        let fits = |side: usize| side > 0 && side.is_multiple_of(self.patch_size);
        if batch == 0 || channels != 3 || !fits(height) || !fits(width) {
            let shape = [batch, channels, height, width];
            return Err(ModelError::Input { shape, patch_size: self.patch_size });
        }
        let pixels = pixels.as_standard_layout();
        let input = TensorRef::from_array_view(&pixels).map_err(failed)?;
        let outputs = self.inner.run(ort::inputs![input]).map_err(failed)?;
        Ok(Outputs {
            last_hidden_state: take(&outputs, "last_hidden_state")?,
            attention: take(&outputs, "attention")?,
            keys: take(&outputs, "keys")?,
            embedding: take(&outputs, "embedding")?,
            feature_map: take(&outputs, "feature_map")?,
            last_blocks: take(&outputs, "last_blocks")?,
        })
    }
}

fn failed(error: impl fmt::Display) -> ModelError {
    ModelError::Run(error.to_string())
}

/// A copy of an output, `None` if the graph has none of this name.
fn take<D: Dimension>(outputs: &SessionOutputs<'_>, name: &str) -> Result<Option<Array<f32, D>>, ModelError> {
    let Some(value) = outputs.get(name) else {
        return Ok(None);
    };
    let array = value.try_extract_array::<f32>().map_err(failed)?;
    let array = array.into_dimensionality::<D>().map_err(|error| failed(format!("output `{name}`: {error}")))?;
    Ok(Some(array.to_owned()))
}

/// CUDA where the library has it and a device answers, else the CPU.
fn open_best(graph: &[u8], path: &Path, threads: usize) -> Result<(ort::session::Session, Device), ModelError> {
    runtime::environment()?;
    if ep::CUDA::is_available().unwrap_or(false) {
        let cuda = Device::Cuda(0);
        match open_on(cuda, graph, path, threads) {
            Ok(session) => return Ok((session, cuda)),
            Err(error) => tracing::info!(%error, "no CUDA device, using the CPU"),
        }
    }
    Ok((open_on(Device::Cpu, graph, path, threads)?, Device::Cpu))
}

fn open_on(device: Device, graph: &[u8], path: &Path, threads: usize) -> Result<ort::session::Session, ModelError> {
    let rejected = |error: ort::Error| ModelError::Graph { path: path.to_owned(), reason: error.to_string() };
    let builder = ort::session::Session::builder(runtime::environment()?).map_err(rejected)?;
    let builder = builder
        .with_intra_threads(threads.max(1))
        .map_err(|error| rejected(error.into()))?
        // A pattern would be kept for every shape that ever came by, and masks come in all shapes.
        .with_memory_pattern(false)
        .map_err(|error| rejected(error.into()))?;
    let mut builder =
        builder.with_execution_providers(device.providers()).map_err(|error| ModelError::Device { device, reason: error.to_string() })?;
    builder.commit_from_memory(graph).map_err(rejected)
}
