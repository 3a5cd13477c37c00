//! One ONNX Runtime session: pixels in, named outputs out.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use ndarray::{Array, ArrayD, ArrayView4, Axis, Dimension, Slice};
use ort::ep::{self, ExecutionProvider};
use ort::session::SessionOutputs;
use ort::value::{DynValue, TensorRef};

use super::external_data::DataFile;
use super::outputs::{OutputGeometry, layer_name};
use super::pinned::Pinned;
use super::{Accelerator, Device, Hardware, Manifest, ModelError, OUTPUTS, Outputs, Precision, plugin, runtime};

/// Name of the input of a model folder's graphs.
const INPUT: &str = "pixel_values";
/// With this option ONNX Runtime makes the weights of byte products unsigned, which costs a third of the speed: see [`clamps_bytes`].
const EXACT_BYTES: (&str, &str) = ("session.x64quantprecision", "1");
/// With this option ONNX Runtime refuses a graph of which it would have to run parts itself.
const ALONE: (&str, &str) = ("session.disable_cpu_ep_fallback", "1");

/// On x86 without VNNI, products of unsigned and signed bytes are added up in 16 bits, which clamp.
fn clamps_bytes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return !(is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni"));
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// How sessions are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// What runs the graph. Of [`Device::Auto`] a session by itself makes the CPU; [`Placement`](crate::placement::Placement) measures.
    pub device: Device,
    /// Which file of the folder. A plain ONNX file has the one that it has.
    pub precision: Precision,
    /// Threads of each session. On a CPU several sessions of one thread each give more pictures per second than one
    /// session of several.
    pub threads: usize,
    /// What it may use of an accelerator.
    pub accelerator: Accelerator,
    /// Whether an accelerator is used although it does not compute what ONNX Runtime's CPU computes.
    pub trust_device: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            device: Device::default(),
            precision: Precision::default(),
            threads: 1,
            accelerator: Accelerator::default(),
            trust_device: false,
        }
    }
}

/// How a graph is fed and read.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    /// Name of its input.
    pub(super) input: String,
    /// What its outputs look like. The sides of every picture are multiples of the patch.
    pub(super) form: OutputGeometry,
    /// Pictures that every run takes, where the graph fixes their number.
    pub(super) batch: Option<usize>,
    /// (height, width) of every picture, where the graph fixes it.
    pub(super) size: Option<(usize, usize)>,
    /// Whether the input is of 16 bits.
    pub(super) half_input: bool,
    /// Our name of each output, and the graph's.
    pub(super) outputs: Vec<(&'static str, String)>,
    /// The blocks whose tokens it gives, and its names of those.
    pub(super) layers: Vec<(u32, String)>,
}

impl Binding {
    /// That of a model folder's graph.
    fn of_folder(inner: &ort::session::Session, manifest: &Manifest) -> Result<Self, String> {
        if inner.inputs().len() != 1 || inner.inputs()[0].name() != INPUT {
            return Err(format!("it has to have one input, `{INPUT}`"));
        }
        let present = |name: &&str| inner.outputs().iter().any(|output| output.name() == *name);
        let outputs: Vec<_> = OUTPUTS.into_iter().filter(present).map(|name| (name, name.to_owned())).collect();
        if outputs.is_empty() {
            return Err(format!("it has none of the outputs {}", OUTPUTS.join(", ")));
        }
        let size = manifest.static_size.map(|(height, width)| (height as usize, width as usize));
        let layers = manifest.layers.iter().map(|number| (*number, layer_name(*number))).filter(|(_, name)| present(&name.as_str()));
        let (layers, form) = (layers.collect(), OutputGeometry::of(manifest));
        Ok(Self { input: INPUT.to_owned(), form, batch: None, size, half_input: false, outputs, layers })
    }
}

/// A graph that a session is started of.
#[derive(Clone, Copy)]
pub(super) enum Graph<'a> {
    /// The bytes of a file, and of those beside it that hold its weights.
    Bytes { graph: &'a [u8], data: &'a [DataFile] },
    /// The file at this path, which may have its weights in other files.
    File,
    /// The same, for a few runs: weights in other files stay there, mapped into memory, and are not copied into a faster form.
    Mapped,
}

/// A loaded graph. It runs one batch at a time: give each worker one of its own.
pub struct Session {
    /// Where the device fetches pixels and leaves outputs, if that is not any memory. It ends before the session that gave it.
    pinned: Option<Pinned>,
    inner: ort::session::Session,
    device: Device,
    binding: Binding,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Session {
    /// Starts a session of `graph`, the file at `path` of a model folder.
    pub(super) fn of_folder(graph: Graph<'_>, path: &Path, manifest: &Manifest, options: &SessionOptions) -> Result<Self, ModelError> {
        let (inner, device) = start(graph, path, INPUT, options)?;
        let binding = Binding::of_folder(&inner, manifest).map_err(|reason| ModelError::Graph { path: path.to_owned(), reason })?;
        Ok(Self::new(inner, device, binding))
    }

    /// Starts a session of a plain ONNX file.
    pub(super) fn of_file(graph: Graph<'_>, path: &Path, binding: Binding, options: &SessionOptions) -> Result<Self, ModelError> {
        let (inner, device) = start(graph, path, &binding.input, options)?;
        Ok(Self::new(inner, device, binding))
    }

    fn new(inner: ort::session::Session, device: Device, binding: Binding) -> Self {
        let pinned = Pinned::of(&inner, device).unwrap_or_else(|error| {
            tracing::warn!(%device, %error, "no pinned memory: every batch is copied once more on its way");
            None
        });
        Self { pinned, inner, device, binding }
    }

    /// The device that really runs the graph; never [`Device::Auto`].
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether the graph has this output.
    pub fn has_output(&self, name: &str) -> bool {
        self.binding.outputs.iter().any(|(ours, _)| *ours == name)
    }

    /// The blocks whose tokens the graph gives, in ascending order; the last one's are `last_hidden_state` as well.
    pub fn layers(&self) -> Vec<u32> {
        self.binding.layers.iter().map(|(number, _)| *number).collect()
    }

    /// Runs a batch of normalised pixels, `[B, 3, H, W]`, with H and W multiples of the patch, or of the one size that a plain
    /// ONNX file takes. A graph that fixes B runs as often as it has to.
    ///
    /// # Errors
    /// [`ModelError::Input`] or [`ModelError::Size`] for another shape, [`ModelError::Run`] where the graph fails.
    pub fn run(&mut self, pixels: ArrayView4<'_, f32>) -> Result<Outputs, ModelError> {
        let (batch, channels, height, width) = pixels.dim();
        let patch_size = self.binding.form.patch;
        let fits = |side: usize| side > 0 && side.is_multiple_of(patch_size);
        if batch == 0 || channels != 3 || !fits(height) || !fits(width) {
            return Err(ModelError::Input { shape: [batch, channels, height, width], patch_size });
        }
        if self.binding.size.is_some_and(|size| size != (height, width)) {
            let (expected_height, expected_width) = self.binding.size.unwrap_or_default();
            return Err(ModelError::Size { found: [height, width], expected: [expected_height, expected_width] });
        }
        let at_once = self.binding.batch.unwrap_or(batch);
        let mut parts =
            pixels.axis_chunks_iter(Axis(0), at_once).map(|part| self.run_part(part, at_once)).collect::<Result<Vec<_>, _>>()?;
        Ok(if parts.len() == 1 { parts.remove(0) } else { Outputs::joined(&parts) })
    }

    /// Runs at most `at_once` pictures; missing ones are grey.
    fn run_part(&mut self, pixels: ArrayView4<'_, f32>, at_once: usize) -> Result<Outputs, ModelError> {
        let (count, channels, height, width) = pixels.dim();
        if count == at_once {
            return self.run_graph(pixels);
        }
        let mut full = ndarray::Array4::zeros((at_once, channels, height, width));
        full.slice_axis_mut(Axis(0), Slice::from(..count)).assign(&pixels);
        Ok(self.run_graph(full.view())?.of(0..count))
    }

    fn run_graph(&mut self, pixels: ArrayView4<'_, f32>) -> Result<Outputs, ModelError> {
        let (batch, _, height, width) = pixels.dim();
        let Binding { input, half_input, outputs: names, layers, .. } = &self.binding;
        // What outputs in pinned memory are borrowed from.
        let bound;
        let outputs = match &mut self.pinned {
            None => run(&mut self.inner, pixels, *half_input)?,
            Some(pinned) => {
                let outputs = names.iter().map(|(_, theirs)| theirs.as_str()).chain(layers.iter().map(|(_, theirs)| theirs.as_str()));
                bound = pinned.bind(&self.inner, input, pixels, *half_input, outputs).map_err(failed)?;
                self.inner.run_binding(&bound).map_err(failed)?
            }
        };
        let outputs = Outputs {
            last_hidden_state: take(&outputs, names, "last_hidden_state")?,
            attention: take(&outputs, names, "attention")?,
            keys: take(&outputs, names, "keys")?,
            embedding: take(&outputs, names, "embedding")?,
            feature_map: take(&outputs, names, "feature_map")?,
            last_blocks: take(&outputs, names, "last_blocks")?,
            layers: layers
                .iter()
                .filter_map(|(number, name)| Some((*number, outputs.get(name)?)))
                .map(|(number, value)| Ok((number, shaped(value, "a block's tokens")?)))
                .collect::<Result<_, ModelError>>()?,
        };
        // A graph may change its outputs with the size of its input; code that reads these numbers relies on their shape.
        let odd = outputs.arrays().find(|(name, array)| !self.binding.form.fits(name, array.shape(), batch, (height, width)));
        if let Some((name, array)) = odd {
            let shape = array.shape();
            return Err(failed(format!("output `{name}` has the shape {shape:?} for {batch} pictures of {height}x{width} pixels")));
        }
        Ok(outputs)
    }
}

/// Runs a graph with one input, in the type that it takes.
pub(super) fn run<'s>(
    session: &'s mut ort::session::Session,
    pixels: ArrayView4<'_, f32>,
    half_input: bool,
) -> Result<SessionOutputs<'s>, ModelError> {
    if half_input {
        let pixels = pixels.mapv(f16::from_f32);
        let input = TensorRef::from_array_view(&pixels).map_err(failed)?;
        return session.run(ort::inputs![input]).map_err(failed);
    }
    let pixels = pixels.as_standard_layout();
    let input = TensorRef::from_array_view(&pixels).map_err(failed)?;
    session.run(ort::inputs![input]).map_err(failed)
}

fn failed(error: impl fmt::Display) -> ModelError {
    ModelError::Run(error.to_string())
}

/// A copy of an output, `None` if the graph has none of this name.
fn take<D: Dimension>(
    outputs: &SessionOutputs<'_>,
    names: &[(&'static str, String)],
    name: &str,
) -> Result<Option<Array<f32, D>>, ModelError> {
    let Some(value) = names.iter().find(|(ours, _)| *ours == name).and_then(|(_, theirs)| outputs.get(theirs)) else {
        return Ok(None);
    };
    shaped(value, name).map(Some)
}

/// A copy of a tensor with as many axes as `D` has.
fn shaped<D: Dimension>(value: &DynValue, name: &str) -> Result<Array<f32, D>, ModelError> {
    let array = numbers(value)?;
    let array = match D::NDIM {
        // Some exporters leave the axes of a pooled feature map in place: [B, D, 1, 1].
        Some(axes) if array.ndim() > axes && array.shape()[axes..].iter().all(|side| *side == 1) => {
            let shape = array.shape()[..axes].to_vec();
            array.into_shape_with_order(shape).map_err(failed)?
        }
        _ => array,
    };
    array.into_dimensionality::<D>().map_err(|error| failed(format!("output `{name}`: {error}")))
}

/// A copy of a tensor of 32 or 16 bits.
pub(super) fn numbers(value: &DynValue) -> Result<ArrayD<f32>, ModelError> {
    match value.try_extract_array::<f32>() {
        Ok(array) => Ok(array.to_owned()),
        Err(_) => Ok(value.try_extract_array::<f16>().map_err(failed)?.mapv(f16::to_f32)),
    }
}

/// Starts a session of a graph whose pixels are called `input` where the options say.
pub(super) fn start(
    graph: Graph<'_>,
    path: &Path,
    input: &str,
    options: &SessionOptions,
) -> Result<(ort::session::Session, Device), ModelError> {
    let start_on = |device| start_on(device, graph, path, input, options);
    match options.device {
        // What is there is measured by the module `placement`.
        Device::Auto => Ok((start_on(Device::Cpu)?, Device::Cpu)),
        // A graph that TensorRT takes in parts has inputs of its own between them, whose ranges are not known.
        Device::TensorRt(_) if options.accelerator.shapes.is_some() => match start_on(options.device) {
            Err(ModelError::Graph { reason, .. }) => {
                tracing::warn!(reason, "TensorRT does not take this graph for a range of shapes: it compiles it for each anew");
                let accelerator = Accelerator { shapes: None, ..options.accelerator.clone() };
                start(graph, path, input, &SessionOptions { accelerator, ..options.clone() })
            }
            started => Ok((started?, options.device)),
        },
        device => Ok((start_on(device)?, device)),
    }
}

/// The devices of this machine that a graph may run on, ONNX Runtime's CPU first.
///
/// # Errors
/// [`ModelError::Runtime`].
pub fn devices() -> Result<Vec<Device>, ModelError> {
    let environment = runtime::environment()?;
    let mut devices = vec![Device::Cpu];
    if ep::CUDA::is_available().unwrap_or(false) {
        devices.push(Device::Cuda(0));
    }
    // Not a neural processor, which compiles a graph for minutes.
    devices
        .extend([Hardware::Gpu, Hardware::Cpu].into_iter().filter(|kind| plugin::has_openvino(environment, *kind)).map(Device::OpenVino));
    Ok(devices)
}

fn start_on(
    device: Device,
    graph: Graph<'_>,
    path: &Path,
    input: &str,
    options: &SessionOptions,
) -> Result<ort::session::Session, ModelError> {
    match device {
        // A plug-in leaves what it does not take to ONNX Runtime's CPU, and that may be everything.
        Device::OpenVino(_) | Device::Plugin { .. } => match start_with(device, graph, path, input, options, true) {
            Err(ModelError::Graph { reason, .. }) => {
                tracing::warn!(%device, reason, "parts of this graph run on ONNX Runtime's CPU");
                start_with(device, graph, path, input, options, false)
            }
            started => started,
        },
        _ => start_with(device, graph, path, input, options, false),
    }
}

/// `alone`: whether a graph is refused that the device does not take whole.
fn start_with(
    device: Device,
    graph: Graph<'_>,
    path: &Path,
    input: &str,
    options: &SessionOptions,
    alone: bool,
) -> Result<ort::session::Session, ModelError> {
    let rejected = |error: ort::Error| ModelError::Graph { path: path.to_owned(), reason: error.to_string() };
    let unusable = |reason: String| ModelError::Device { device, reason };
    let environment = runtime::environment()?;
    let mut builder = ort::session::Session::builder(environment)
        .map_err(rejected)?
        .with_intra_threads(options.threads.max(1))
        .map_err(|error| rejected(error.into()))?
        // A pattern would be kept for every shape that ever came by, and masks come in all shapes.
        .with_memory_pattern(false)
        .map_err(|error| rejected(error.into()))?;
    for (name, value) in [(clamps_bytes(), EXACT_BYTES), (alone, ALONE)].into_iter().filter_map(|(set, entry)| set.then_some(entry)) {
        builder = builder.with_config_entry(name, value).map_err(|error| rejected(error.into()))?;
    }
    let builder =
        if matches!(graph, Graph::Mapped) { builder.with_prepacking(false).map_err(|error| rejected(error.into()))? } else { builder };
    let builder = match graph {
        Graph::Bytes { data, .. } => data.iter().try_fold(builder, |builder, file| {
            let add = builder.with_external_initializer_file_in_memory(&file.name, Arc::clone(&file.bytes));
            add.map_err(|error| rejected(error.into()))
        })?,
        Graph::File | Graph::Mapped => builder,
    };
    let builder = match plugin::choose(environment, device, options.threads).map_err(unusable)? {
        Some(chosen) => builder.with_devices([chosen.device], Some(&chosen.options)),
        None => builder.with_execution_providers(device.providers(input, &options.accelerator)),
    };
    let mut builder = builder.map_err(|error| unusable(error.to_string()))?;
    match graph {
        Graph::Bytes { graph, .. } => builder.commit_from_memory(graph),
        Graph::File | Graph::Mapped => builder.commit_from_file(path),
    }
    .map_err(rejected)
}
