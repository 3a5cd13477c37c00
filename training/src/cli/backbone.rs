//! What `--model` names: a model folder, an ONNX file of others, or a checkpoint, which is exported to a temporary folder.

use std::path::Path;

use anyhow::Context as _;
use dino_hub::{Location, Want};
use dino_vision::bulk::{Embedder, Workload};
use dino_vision::cores;
use dino_vision::embedding::Pooling;
use dino_vision::model::{Device, Model, Precision, Session, SessionOptions};
use dino_vision::placement::{self, Placement};
use tempfile::TempDir;

use super::checkpoint;
use crate::export::LastBlocks;
use crate::{export, weights};

/// The flags that say where a model runs, and in which precision.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct DeviceArgs {
    /// Precision to run with.
    #[arg(long, default_value = "f32")]
    pub precision: Precision,
    /// Where the model runs: auto (the fastest that is there), cpu, cuda[:N], tensorrt[:N], openvino[:CPU|GPU|NPU] or
    /// plugin:PATH[:N].
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Use a device although it does not compute what ONNX Runtime's CPU computes.
    #[arg(long)]
    trust_device: bool,
}

impl DeviceArgs {
    /// The fastest device that computes what the CPU does.
    pub fn auto(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }

    /// One session of a model that uses all cores, on the device that they name or the fastest; it is compared with the CPU.
    ///
    /// # Errors
    /// If the model does not run, or computes something else than on the CPU.
    pub fn session(&self, model: &Model) -> anyhow::Result<Session> {
        one_session(model, self.options())
    }

    /// Sessions as they say.
    pub fn options(&self) -> SessionOptions {
        let Self { device, precision, trust_device } = *self;
        SessionOptions { device, precision, trust_device, ..SessionOptions::default() }
    }
}

/// The flags that say how a backbone is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Running {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    reading: checkpoint::Args,
}

/// The flags that say which backbone is evaluated, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct BackboneArgs {
    /// Model folder, an ONNX file that was exported elsewhere, or a checkpoint, which is exported to a temporary folder first;
    /// `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub.
    #[arg(long, value_name = "MODEL_DIR|CHECKPOINT|HF", value_parser = dino_program::flags::location())]
    pub model: Location,
    #[command(flatten)]
    running: Running,
}

/// A backbone that can be run.
pub struct Backbone {
    /// Its folder.
    pub model: Model,
    options: SessionOptions,
    /// Lives as long as the model is used.
    exported: Option<TempDir>,
}

impl BackboneArgs {
    /// Opens the model; a checkpoint's graph gives the CLS tokens of its `last_blocks` last blocks too.
    ///
    /// # Errors
    /// If it is neither a model folder nor a checkpoint.
    pub fn open(&self, last_blocks: usize) -> anyhow::Result<Backbone> {
        self.running.open(&self.model, last_blocks)
    }
}

impl Running {
    /// Opens a model folder, or exports a checkpoint whose graph gives the CLS tokens of its `last_blocks` last blocks too. What a hub
    /// has is fetched first.
    ///
    /// # Errors
    /// If it is neither, or is not fetched.
    pub fn open(&self, model: &Location, last_blocks: usize) -> anyhow::Result<Backbone> {
        let model = model.fetch(&Want::Either { precision: self.device.precision.to_string() })?.path;
        let checkpoint = self.reading.options(None);
        Backbone::open(&model, self.device.options(), checkpoint, last_blocks)
    }
}

impl Backbone {
    /// Opens a model folder or an ONNX file, or exports a checkpoint.
    ///
    /// # Errors
    /// If it is neither.
    fn open(path: &Path, options: SessionOptions, checkpoint: weights::Options, last_blocks: usize) -> anyhow::Result<Self> {
        if is_folder(path) || path.extension().is_some_and(|end| end == "onnx") {
            anyhow::ensure!(
                checkpoint == weights::Options::default(),
                "{} says by itself how it is read: --heads, --prefix, --ignore, --positions, --size, --crop, --mean, --std and --interpolation are for checkpoints",
                path.display()
            );
            let model = Model::open(path)?;
            if let Some(summary) = model.summary() {
                tracing::info!("{summary}");
            }
            return Ok(Self { model, options, exported: None });
        }
        let exported = tempfile::tempdir()?;
        let folder = exported.path().join("model");
        let how = export::Options {
            checkpoint,
            precisions: vec![options.precision],
            last_blocks: LastBlocks::UpTo(last_blocks),
            ..Default::default()
        };
        let exported_model = export::export(path, &folder, &how)
            .with_context(|| format!("{} is neither a model folder nor a checkpoint that can be exported", path.display()))?;
        exported_model.report.notes.iter().chain(&exported_model.notes).for_each(|note| tracing::info!("{note}"));
        Ok(Self { model: Model::open(&folder)?, options, exported: Some(exported) })
    }

    /// Whether it was a checkpoint, which was exported just now.
    pub fn was_exported(&self) -> bool {
        self.exported.is_some()
    }

    /// As many sessions as the device takes. Only commands that embed files by themselves use `pooling`.
    ///
    /// # Errors
    /// If the model does not run.
    pub fn embedder(&self, pooling: Pooling) -> anyhow::Result<Embedder> {
        Ok(Embedder::open(&self.model, pooling, &self.options, Workload::default())?)
    }

    /// One session that uses all cores, of this model or of another one that is run in its place.
    ///
    /// # Errors
    /// If the model does not run.
    pub fn session_of(&self, model: &Model) -> anyhow::Result<Session> {
        one_session(model, self.options.clone())
    }
}

fn one_session(model: &Model, options: SessionOptions) -> anyhow::Result<Session> {
    let options = SessionOptions { threads: cores::available(), ..options };
    Ok(Placement::of(model, &options, placement::Workload { sessions: Some(1), batch: None })?.sessions.remove(0).0)
}

fn is_folder(path: &Path) -> bool {
    path.join("manifest.json").is_file()
}
