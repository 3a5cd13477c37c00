//! `dino-train export`: a checkpoint becomes a model folder.

use std::path::PathBuf;

use anyhow::Context as _;

use dino_hub::{Location, Want};
use dino_vision::model::Precision;

use crate::export::{LastBlocks, Measured, Options, export, holds};
use crate::weights::Key;

use super::backbone::DeviceArgs;
use super::{checkpoint, segment_eval};

/// Turn a checkpoint of this project or of a public release into a model folder.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A safetensors file, an index of shards, a file of torch.save, or a folder that holds one; also a training run's folder.
    /// `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub.
    #[arg(long, value_name = "FILE|DIR|HF", value_parser = dino_program::flags::location())]
    checkpoint: Location,
    /// Model folder to write. Of one that is already there, the manifest and the ONNX files are replaced; heads and whatever else lies in
    /// it are kept.
    #[arg(long, value_name = "MODEL_DIR")]
    out: PathBuf,
    /// Number format of the matrix products; give it several times for several files in the folder.
    #[arg(long = "precision", value_name = "f32|f16|int8", default_value = "f32")]
    precisions: Vec<Precision>,
    /// Pictures (an `ImageFolder`, or any tree) to measure with what f16 and int8 cost, instead of those that the program carries.
    /// The figures go into the manifest.
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
    /// Masks of --pictures, below DIR as the pictures are below theirs (see `segment-eval --masks`): how masks are best made with the model
    /// is measured with them and written into its manifest, as `segment-eval --recommend` does. `/segment` without `method` follows it.
    #[arg(long, value_name = "DIR", requires = "pictures")]
    masks: Option<PathBuf>,
    /// Do not measure what f16 and int8 cost, which takes a while with large models.
    #[arg(long, conflicts_with = "pictures")]
    unmeasured: bool,
    #[command(flatten)]
    reading: checkpoint::Args,
    /// Blocks, counted from the last, whose CLS tokens the model gives too, for heads that `linear` trains on several.
    #[arg(long, value_name = "N", default_value_t = 0)]
    last_blocks: usize,
    /// Numbers of blocks, from 1, all of whose tokens the model gives too, as the outputs `hidden_state_N`, for `/embed?layer=N`; for
    /// example 3,6,9,12.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), value_name = "N,N,…", value_delimiter = ',')]
    layers: Vec<usize>,
    /// Height and width in pixels of the only pictures that the model takes, with the positions of their patches folded into the graph: for
    /// `TensorRT` and other runtimes that do not compute positions right, or slowly. The number of pictures stays free.
    #[arg(long = "static", value_name = "H,W", value_parser = size, conflicts_with_all = ["size", "crop"])]
    static_size: Option<(u32, u32)>,
    /// Write the weights into a file beside each ONNX file (`model.onnx_data`), as happens by itself where they take more than the 2 GiB that
    /// one ONNX file can hold.
    #[arg(long)]
    external_data: bool,
    /// Pictures like those that will be served, labels unused, some thousand: the model's CLS token becomes a whitened embedding of CLS and the
    /// mean of the patches, computed of them. Neighbours are often better then; embeddings can only be compared with those of the same export.
    #[arg(long, value_name = "DIR")]
    whiten: Option<PathBuf>,
    /// Do nothing where the folder holds a model of the same weights in each --precision already. Other settings are not compared.
    #[arg(long)]
    if_changed: bool,
    /// Network of a training checkpoint to take; the teacher if this is left out.
    #[arg(long, value_enum)]
    key: Option<Key>,
}

/// Runs the verb.
///
/// # Errors
/// If the checkpoint does not fit a known layout, or the folder cannot be written; then no folder is left.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = args.reading.options(args.key);
    let measured = match &args.pictures {
        Some(folder) => Measured::Folder(folder.clone()),
        None if args.unmeasured => Measured::Not,
        None => Measured::Bundled,
    };
    // Before anything is downloaded or written.
    let masks = args.pictures.as_ref().zip(args.masks.as_ref()).map(|(images, masks)| segment_eval::pairs(images, masks)).transpose()?;
    let found = args.checkpoint.fetch(&Want::Weights)?;
    if args.if_changed && holds(&args.out, &found.path, &args.precisions)? {
        tracing::info!("{} holds a model of these weights already; it is left as it is", args.out.display());
        return Ok(());
    }
    let hub = found.name.as_ref().map(ToString::to_string);
    let options = Options {
        checkpoint,
        hub,
        precisions: args.precisions.clone(),
        measured,
        last_blocks: LastBlocks::Exactly(args.last_blocks),
        layers: args.layers.clone(),
        static_size: args.static_size,
        external_data: args.external_data,
        whiten: args.whiten.clone(),
    };
    let exported = export(&found.path, &args.out, &options).with_context(|| format!("cannot export {}", args.checkpoint))?;
    let report = &exported.report;
    for note in &report.notes {
        tracing::info!("{note}");
    }
    if !report.unneeded.is_empty() {
        let shown = report.unneeded.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if report.unneeded.len() > 8 { ", …" } else { "" };
        tracing::info!("left out, not part of the backbone: {} ({shown}{more})", tensors(report.unneeded.len()));
    }
    let manifest = &exported.manifest;
    tracing::info!(
        "{} of {}: {} used, {} left out; {} with {} channels, {} blocks, {} heads, patches of {}; written to {}",
        manifest.source.layout,
        manifest.source.file,
        tensors(report.used),
        report.unneeded.len(),
        manifest.architecture,
        manifest.dim,
        manifest.depth,
        manifest.heads,
        manifest.patch_size,
        exported.folder.display(),
    );
    if let Some(whitening) = &manifest.whitening {
        tracing::info!("embeddings are whitened by {} pictures", whitening.pictures);
    }
    for note in &exported.notes {
        tracing::warn!("{note}");
    }
    if !exported.kept.is_empty() {
        tracing::warn!("kept, as they were in the folder: {}; heads fit the weights that they were trained on", exported.kept.join(", "));
    }
    if !exported.removed.is_empty() {
        tracing::warn!("removed from the folder, as this export does not write them: {}", exported.removed.join(", "));
    }
    for (precision, file) in &manifest.files {
        if let Some(cost) = &file.cost {
            let agreement = cost.knn_agreement.map_or_else(String::new, |share| format!(", {share} of the k-NN votes"));
            tracing::info!(
                "{precision} against f32 on {} pictures: cosine at least {}, {} on average; {} of the ten nearest{agreement} the same",
                cost.pictures,
                cost.cosine_min,
                cost.cosine_mean,
                cost.top10_overlap,
            );
        }
    }
    if let Some(pairs) = masks {
        let precision = args.precisions.first().copied().unwrap_or_default();
        segment_eval::recommend(&exported.folder, &pairs, &DeviceArgs::auto(precision))?;
    }
    Ok(())
}

fn tensors(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once([',', 'x']).and_then(|(height, width)| Some((height.trim().parse().ok()?, width.trim().parse().ok()?)));
    sides.ok_or_else(|| "expected height and width in pixels, such as 224,224".to_owned())
}
