//! Which models are served, and how they run.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;
use dino_hub::Location;
use dino_vision::model::{Accelerator, Device, Precision};

use crate::flags;

/// Flags of the models; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// A model folder to serve, or an ONNX file that was exported elsewhere, with the name that requests call it by (its own name
    /// if left out). `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub, from which it is fetched at the start. May be given
    /// several times; the first is the one that requests without `model` get.
    #[arg(
        long = "model",
        env = "DINO_MODEL",
        value_name = "[NAME=]PATH|HF",
        value_delimiter = ',',
        required = true,
        help_heading = "Models"
    )]
    pub models: Vec<Named<Location>>,
    /// A linear head that `dino-train linear --out` wrote, for /classify, /segment or /depth with head=NAME (the folder's own name if NAME is left out).
    /// May be given several times. Those in a model folder's `heads` are found without it.
    #[arg(long = "head", env = "DINO_HEAD", value_name = "[NAME=]PATH", value_delimiter = ',', help_heading = "Models")]
    pub heads: Vec<Named<PathBuf>>,
    /// Which of a model folder's files to run: f32, f16 or int8. An ONNX file that was exported elsewhere runs as it is.
    #[arg(long, env = "DINO_PRECISION", default_value = "f32", help_heading = "Models")]
    pub precision: Precision,
    /// Where models run: auto (the fastest that is there, measured at the start), cpu, cuda, cuda:N, tensorrt, tensorrt:N,
    /// openvino, `openvino:CPU|GPU|NPU`, plugin:PATH or plugin:PATH:N.
    #[arg(long, env = "DINO_DEVICE", default_value = "auto", help_heading = "Device")]
    pub device: Device,
    /// Serve on a device although it does not compute what ONNX Runtime's CPU computes. At the start every other device is compared with
    /// it on two pictures, and refused where it differs.
    #[arg(long, env = "DINO_TRUST_DEVICE", help_heading = "Device")]
    pub trust_device: bool,
    /// Most memory of a GPU that each session takes for its arena (and TensorRT to try things out in), in bytes or with a unit; as
    /// much as there is, if left out.
    #[arg(long, env = "DINO_DEVICE_MEMORY", value_name = "BYTES", value_parser = flags::bytes, help_heading = "Device")]
    pub device_memory: Option<usize>,
    /// Folder for the engines that TensorRT builds, so that the next start finds them.
    #[arg(long, env = "DINO_ENGINE_CACHE", value_name = "DIR", help_heading = "Device")]
    pub engine_cache: Option<PathBuf>,
    /// Sessions per model, each a copy of its weights with a thread of its own [default: one per core on a CPU, else 1].
    #[arg(long, env = "DINO_SESSIONS", value_name = "N", value_parser = flags::positive, help_heading = "Device")]
    pub sessions: Option<usize>,
    /// Threads inside each session. More sessions of one thread answer more pictures; more threads answer one sooner.
    #[arg(long, env = "DINO_THREADS", default_value = "1", value_name = "N", value_parser = flags::positive, help_heading = "Device")]
    pub threads: usize,
    /// Most pictures that one session runs at once, of the size that the model's transform makes; of larger ones fewer [default: 1 on
    /// a CPU, else as many as have the patches of 64 pictures of 224 pixels in patches of 16].
    #[arg(long, env = "DINO_MAX_BATCH", value_name = "N", value_parser = flags::positive, help_heading = "Device")]
    pub max_batch: Option<usize>,
    /// Seconds that a batch with room left waits for further pictures, such as 0.005. With 0 a free session runs what is there. Batches
    /// of one picture, as they are on a CPU without --max-batch, have no room.
    #[arg(long, env = "DINO_MAX_BATCH_DELAY", default_value = "0", value_name = "SECONDS", value_parser = flags::seconds_or_none, help_heading = "Device")]
    pub max_batch_delay: Duration,
    /// Length in pixels to which /segment resizes the longer side of a picture.
    #[arg(long, env = "DINO_SEGMENT_SIZE", default_value_t = 480, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Limits")]
    pub segment_size: u32,
}

/// `[NAME=]PATH` of a model or of a head: what requests call it, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named<P> {
    /// What requests call it.
    pub name: String,
    /// Its folder or file.
    pub path: P,
}

impl FromStr for Named<PathBuf> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = split(text)?;
        let name = name.map_or_else(|| own_name(text, Path::new(path)), Ok)?;
        Ok(Self { name: name.into(), path: path.into() })
    }
}

impl FromStr for Named<Location> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = split(text)?;
        let location = Location::of(path.into()).map_err(|error| error.to_string())?;
        let name = match (name, &location) {
            (Some(name), _) => name,
            (None, Location::Path(path)) => own_name(text, path)?,
            (None, Location::Hub(hub)) => hub.short(),
        };
        Ok(Self { name: name.to_owned(), path: location })
    }
}

/// NAME, where one is given, and what stands after it.
fn split(text: &str) -> Result<(Option<&str>, &str), String> {
    match text.split_once('=') {
        Some((name, "")) if is_name(name) => Err(format!("`{text}` names no folder after the `=`")),
        // A `=` further down belongs to the path: names have no slashes.
        Some((name, path)) if is_name(name) => Ok((Some(name), path)),
        _ => Ok((None, text)),
    }
}

/// The name of a folder, or of a file without its ending.
fn own_name<'a>(text: &str, path: &'a Path) -> Result<&'a str, String> {
    let name = if path.extension().is_some_and(|end| end == "onnx") { path.file_stem() } else { path.file_name() };
    let name = name.and_then(|name| name.to_str()).filter(|name| is_name(name));
    name.ok_or_else(|| format!("give the model a name: NAME={text} (letters, digits, `_`, `.`, `-`)"))
}

/// `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`, the form of every name in the API.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.len() <= 128
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Names that are given twice.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Two models with one name.
    #[error("two models are called `{0}`: give one of them another name, --model NAME=PATH")]
    SameName(String),
    /// Two heads with one name.
    #[error("two heads are called `{0}`: give one of them another name, --head NAME=PATH")]
    SameHead(String),
}

impl Options {
    /// Checks what the flags' own types cannot.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub fn check(&self) -> Result<(), OptionsError> {
        if let Some(name) = twice(&self.models) {
            return Err(OptionsError::SameName(name));
        }
        twice(&self.heads).map_or(Ok(()), |name| Err(OptionsError::SameHead(name)))
    }

    /// What each session may use of an accelerator.
    pub(super) fn accelerator(&self) -> Accelerator {
        Accelerator { memory: self.device_memory, engines: self.engine_cache.clone(), shapes: None }
    }
}

/// The first name that is given twice.
fn twice<P>(named: &[Named<P>]) -> Option<String> {
    let again = |(position, one): &(usize, &Named<P>)| named[..*position].iter().any(|other| other.name == one.name);
    named.iter().enumerate().find(again).map(|(_, one)| one.name.clone())
}
