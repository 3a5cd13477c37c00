//! A plain ONNX file that another program exported: `--model file.onnx`.
//!
//! Such a file has no manifest. What one would say is read from the file itself, from `preprocessor_config.json` where there is
//! one, and from trial runs: exporters declare sizes as free that are not, and the other way round.

mod file;
mod fit;
mod probe;
mod roles;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::manifest::{File, Manifest, Source};
use super::session::Binding;
use super::{ModelError, Precision};
use file::Facts;
use fit::Fitted;
use probe::{Answer, Probe};
use roles::Roles;

/// Pixels of one side that a graph may ask for.
const MOST_SIDE: usize = crate::transform::MOST_SIDE as usize;
/// Pictures that a graph may ask for at once.
const MOST_PICTURES: usize = 256;
/// Pixels of all pictures of one run: 800 MB of float32.
const MOST_PIXELS: usize = 1 << 26;

/// What became clear of a plain file.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    /// How its graph is fed and read.
    pub(super) binding: Binding,
    /// The type of its weights.
    pub(super) precision: Precision,
    /// All of it in a sentence or two, for the user who started the program.
    pub(super) summary: String,
    /// The other files that hold its weights.
    beside: Vec<PathBuf>,
}

impl Plain {
    /// SHA-256 of the files as they are now; that of the manifest where nothing was written to them.
    pub(super) fn sha256(&self, path: &Path) -> std::io::Result<String> {
        file::sha256(path, &self.beside)
    }
}

/// Reads and tries the file at `path`.
pub(super) fn understand(path: &Path) -> Result<(Manifest, Plain), ModelError> {
    let reject = |reason: String| ModelError::Graph { path: path.to_owned(), reason };
    // Read before it is loaded: what is written to it from here on changes the hash that the sessions are compared with.
    let bytes = file::read(path)?;
    let mut fitted = Fitted::find(path)?;
    // ONNX Runtime first: its parser bounds how deeply a file nests, ours does not.
    let mut probe = Probe::open(path)?;
    let facts = Facts::of(path, &bytes)?;
    drop(bytes);
    let input = &probe.input;
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

    let (height, width) = fitted.size();
    // A size that is free is that of the transform, in whole patches.
    let whole = |side: u32| facts.patch.map_or(side as usize, |patch| (side as usize / patch).max(1) * patch);
    let (height, width) = (input.height.unwrap_or_else(|| whole(height)), input.width.unwrap_or_else(|| whole(width)));
    let batch = declared_batch.unwrap_or(1);
    if !bearable(batch, height, width) {
        return Err(reject(format!(
            "its input is {batch} pictures of {height}x{width} pixels at once; at most {MOST_PICTURES} pictures, sides of {MOST_SIDE} and {MOST_PIXELS} pixels in all are run"
        )));
    }
    fitted.end_in(height as u32, width as u32);
    let answer = probe.run(batch, height, width)?;
    if !answer.finite {
        return Err(reject("it answers NaN or infinite values to a made-up picture".to_owned()));
    }
    let roles = Roles::of(&answer, facts.patch, (height, width), batch).map_err(&reject)?;
    if let Some(name) = &roles.doubtful {
        tracing::warn!(path = %path.display(), "output `{name}` looks like the scores of a classifier, not like features; embeddings made of it compare poorly");
    }
    let patch = roles.form.patch;

    // What is declared free is tried.
    let (other_height, other_width) = (height + patch, width + 2 * patch);
    let mut holds = |batch: usize, height: usize, width: usize| {
        bearable(batch, height, width) && probe.run(batch, height, width).is_ok_and(|answer| roles.agree(&answer, (height, width), batch))
    };
    let free_size = !declared_size && roles.has_patches() && holds(batch, other_height, other_width);
    let free_batch = declared_batch.is_none() && holds(2, height, width);
    let binding = Binding {
        input: input_name,
        form: roles.form,
        batch: (!free_batch).then_some(batch),
        size: (!free_size).then_some((height, width)),
        half_input,
        outputs: roles.outputs.clone(),
    };

    let manifest = manifest(path, &facts, &fitted, &roles);
    let sizes = if free_size { format!("all multiples of {patch} pixels") } else { format!("{height}x{width} pixels alone") };
    let batches = if free_batch { "any number of pictures".to_owned() } else { format!("{batch} at a time") };
    let transform = serde_json::to_string(&manifest.transform).unwrap_or_default();
    let summary = format!("plain ONNX: {named}; {}; takes {sizes}, {batches}; transform {}: {transform}", roles.summary, fitted.origin);
    Ok((manifest, Plain { binding, precision: facts.precision, summary, beside: facts.beside }))
}

/// Whether a trial of this size is worth its memory.
fn bearable(batch: usize, height: usize, width: usize) -> bool {
    batch <= MOST_PICTURES && height.max(width) <= MOST_SIDE && batch * height * width <= MOST_PIXELS
}

fn side(length: Option<usize>, free: &str) -> String {
    length.map_or_else(|| free.to_owned(), |length| length.to_string())
}

/// What a manifest would say. Depth and heads are not known, and 0.
fn manifest(path: &Path, facts: &Facts, fitted: &Fitted, roles: &Roles) -> Manifest {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = File { name: name.clone(), sha256: facts.sha256.clone(), cost: None };
    Manifest {
        format: Manifest::FORMAT,
        architecture: roles.architecture.to_owned(),
        patch_size: roles.form.patch as u32,
        dim: roles.form.dim as u32,
        depth: 0,
        heads: roles.form.heads as u32,
        registers: roles.form.registers as u32,
        last_blocks: roles.form.last_blocks as u32,
        position_interpolation: "unknown".to_owned(),
        transform: fitted.transform.clone(),
        source: Source { file: name, layout: "onnx".to_owned(), sha256: facts.sha256.clone() },
        files: BTreeMap::from([(facts.precision.to_string(), file)]),
        made_by: facts.made_by.clone(),
    }
}
