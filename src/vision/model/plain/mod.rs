//! A plain ONNX file that another program exported: `--model file.onnx`.
//!
//! Such a file has no manifest. What one would say is read from the file itself, from `preprocessor_config.json` where there is
//! one, and from dry runs: exporters declare sizes as free that are not, and the other way round.

mod dry_run;
mod graph_info;
mod input_transform;
mod output_mapping;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::external_data::{self, Loaded};
use super::manifest::{File, Manifest, Source};
use super::session::{Binding, Graph};
use super::{ModelError, Precision};
use dry_run::{DryRun, DryRunOutputs};
use graph_info::GraphInfo;
use input_transform::InputTransform;
use output_mapping::OutputMapping;

/// Pixels of one side that a graph may ask for.
const MOST_SIDE: usize = crate::transform::MOST_SIDE as usize;
/// Pictures that a graph may ask for at once.
const MOST_PICTURES: usize = 256;
/// Pixels of all pictures of one run: 800 MB of float32.
const MOST_PIXELS: usize = 1 << 26;

/// What was found out about a plain file.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    /// How its graph is fed and read.
    pub(super) binding: Binding,
    /// The type of its weights.
    pub(super) precision: Precision,
    /// All of it in a sentence or two, for the user who started the program.
    pub(super) summary: String,
    /// Whether some of its files are links, which ONNX Runtime refuses to follow.
    pub(super) linked: bool,
    /// The other files that hold its weights.
    beside: Vec<PathBuf>,
}

impl Plain {
    /// SHA-256 of the files as they are now; that of the manifest where nothing was written to them.
    pub(super) fn sha256(&self, path: &Path) -> std::io::Result<String> {
        graph_info::sha256(path, &self.beside)
    }
}

/// Reads and tries the file at `path`.
pub(super) fn inspect(path: &Path) -> Result<(Manifest, Plain), ModelError> {
    let reject = |reason: String| ModelError::Graph { path: path.to_owned(), reason };
    // Read before it is loaded: what is written to it from here on changes the hash that the sessions are compared with.
    let bytes = graph_info::read(path)?;
    let mut prepared = InputTransform::find(path)?;
    let beside = external_data::places(path, &bytes)?;
    let linked = !beside.is_empty() && (path.is_symlink() || beside.iter().any(|file| file.is_symlink()));
    // ONNX Runtime before `GraphInfo`: its parser bounds how deeply a file nests, that of onnx-rs does not.
    let (mut dry_run, bytes, sha256) = if linked {
        let loaded = Loaded::of(path, bytes)?;
        let dry_run = DryRun::open(Graph::Bytes { graph: &loaded.graph, data: &loaded.data }, path)?;
        let sha256 = loaded.sha256();
        (dry_run, loaded.graph, sha256)
    } else {
        let sha256 = graph_info::sha256_after(Sha256::new_with_prefix(&bytes), &beside)?;
        (DryRun::open(Graph::File, path)?, bytes, sha256)
    };
    let info = GraphInfo::of(path, &bytes)?;
    drop(bytes);
    let input = &dry_run.input;
    let (input_name, half_input, declared_batch) = (input.name.clone(), input.half, input.batch);
    let declared_size = input.height.is_some() || input.width.is_some();
    let named = format!(
        "input {} of {} [{}, 3, {}, {}]",
        input.name,
        if half_input { "float16" } else { "float32" },
        side(input.batch, "batch"),
        side(input.height, "height"),
        side(input.width, "width")
    );

    let (height, width) = prepared.size();
    // A size that is free is that of the transform, in whole patches.
    let whole = |side: u32| info.patch.map_or(side as usize, |patch| (side as usize / patch).max(1) * patch);
    let (height, width) = (input.height.unwrap_or_else(|| whole(height)), input.width.unwrap_or_else(|| whole(width)));
    let batch = declared_batch.unwrap_or(1);
    if !within_limits(batch, height, width) {
        return Err(reject(format!(
            "its input is {batch} pictures of {height}x{width} pixels at once; at most {MOST_PICTURES} pictures, sides of {MOST_SIDE} and {MOST_PIXELS} pixels in all are run"
        )));
    }
    prepared.end_in(height as u32, width as u32);
    let answer = dry_run.run(batch, height, width)?;
    if !answer.finite {
        return Err(reject("it answers NaN or infinite values to a made-up picture".to_owned()));
    }
    let mapping = OutputMapping::of(&answer, info.patch, (height, width), batch).map_err(&reject)?;
    if let Some(name) = &mapping.doubtful {
        tracing::warn!(path = %path.display(), "output `{name}` looks like the scores of a classifier, not like features; embeddings made of it compare poorly");
    }
    let patch = mapping.form.patch;

    // What is declared free is tried.
    let (other_height, other_width) = (height + patch, width + 2 * patch);
    let mut holds = |batch: usize, height: usize, width: usize| {
        within_limits(batch, height, width)
            && dry_run.run(batch, height, width).is_ok_and(|answer| mapping.agree(&answer, (height, width), batch))
    };
    let free_size = !declared_size && mapping.has_patches() && holds(batch, other_height, other_width);
    let free_batch = declared_batch.is_none() && holds(2, height, width);
    let binding = Binding {
        layers: Vec::new(),
        input: input_name,
        form: mapping.form,
        batch: (!free_batch).then_some(batch),
        size: (!free_size).then_some((height, width)),
        half_input,
        outputs: mapping.outputs.clone(),
    };

    let manifest = manifest(path, sha256, &info, &prepared, &mapping);
    let sizes = if free_size { format!("all multiples of {patch} pixels") } else { format!("{height}x{width} pixels alone") };
    let batches = if free_batch { "any number of pictures".to_owned() } else { format!("{batch} at a time") };
    let transform = serde_json::to_string(&manifest.transform).unwrap_or_default();
    let summary = format!("plain ONNX: {named}; {}; takes {sizes}, {batches}; transform {}: {transform}", mapping.summary, prepared.origin);
    Ok((manifest, Plain { binding, precision: info.precision, summary, linked, beside }))
}

/// Whether a dry run of this size stays within the limits.
fn within_limits(batch: usize, height: usize, width: usize) -> bool {
    batch <= MOST_PICTURES && height.max(width) <= MOST_SIDE && batch * height * width <= MOST_PIXELS
}

fn side(length: Option<usize>, free: &str) -> String {
    length.map_or_else(|| free.to_owned(), |length| length.to_string())
}

/// What a manifest would say. Depth and heads are not known, and 0.
fn manifest(path: &Path, sha256: String, info: &GraphInfo, prepared: &InputTransform, mapping: &OutputMapping) -> Manifest {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = File { name: name.clone(), sha256: sha256.clone(), data: None, cost: None };
    Manifest {
        format: Manifest::FORMAT,
        architecture: mapping.architecture.to_owned(),
        patch_size: mapping.form.patch as u32,
        dim: mapping.form.dim as u32,
        depth: 0,
        heads: mapping.form.heads as u32,
        registers: mapping.form.registers as u32,
        last_blocks: mapping.form.last_blocks as u32,
        layers: Vec::new(),
        static_size: None,
        whitening: None,
        segment: None,
        position_interpolation: "unknown".to_owned(),
        transform: prepared.transform.clone(),
        source: Source { file: name, layout: "onnx".to_owned(), sha256, hub: None },
        files: BTreeMap::from([(info.precision.to_string(), file)]),
        made_by: info.made_by.clone(),
    }
}
