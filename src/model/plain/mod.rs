//! A plain ONNX file that somebody else exported: `--model file.onnx`.
//!
//! Such a file has no manifest. What one would say is read from the file itself, from `preprocessor_config.json` where there is
//! one, and from trial runs: exporters declare sizes as free that are not, and the other way round.

mod file;
mod fit;
mod probe;
mod roles;

use std::collections::BTreeMap;
use std::path::Path;

use super::manifest::{File, Manifest, Source};
use super::session::Binding;
use super::{ModelError, Precision};
use file::Facts;
use fit::Fitted;
use probe::{Answer, Probe};
use roles::Roles;

/// What became clear of a plain file.
#[derive(Clone, Debug)]
pub(super) struct Plain {
    /// How its graph is fed and read.
    pub(super) binding: Binding,
    /// The type of its weights.
    pub(super) precision: Precision,
    /// All of it in a sentence or two, for whoever started the program.
    pub(super) summary: String,
}

/// Reads and tries the file at `path`.
pub(super) fn understand(path: &Path) -> Result<(Manifest, Plain), ModelError> {
    let reject = |reason: String| ModelError::Graph { path: path.to_owned(), reason };
    let facts = Facts::read(path)?;
    let mut fitted = Fitted::find(path)?;
    let mut probe = Probe::open(path)?;
    let input = &probe.input;
    let (half_input, declared_batch) = (input.half, input.batch);
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
    fitted.end_in(height as u32, width as u32);

    let batch = declared_batch.unwrap_or(1);
    let answer = probe.run(batch, height, width)?;
    if !answer.finite {
        return Err(reject("it answers NaN or infinite values to a made-up picture".to_owned()));
    }
    let roles = Roles::of(&answer, facts.patch, (height, width), batch).map_err(&reject)?;
    let patch = roles.patch;

    // What is declared free is tried.
    let (other_height, other_width) = (height + patch, width + 2 * patch);
    let mut holds = |batch: usize, height: usize, width: usize| {
        let answer = probe.run(batch, height, width);
        answer.is_ok_and(|answer| roles.agree(&answer, (height, width), batch))
    };
    let free_size = !declared_size && roles.has_patches() && holds(batch, other_height, other_width);
    let free_batch = declared_batch.is_none() && holds(2, height, width);
    let binding = Binding {
        patch_size: patch,
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
    Ok((manifest, Plain { binding, precision: facts.precision, summary }))
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
        patch_size: roles.patch as u32,
        dim: roles.dim as u32,
        depth: 0,
        heads: roles.heads as u32,
        registers: roles.registers as u32,
        last_blocks: roles.last_blocks as u32,
        position_interpolation: "unknown".to_owned(),
        transform: fitted.transform.clone(),
        source: Source { file: name, layout: "onnx".to_owned(), sha256: facts.sha256.clone() },
        files: BTreeMap::from([(facts.precision.to_string(), file)]),
        made_by: facts.made_by.clone(),
    }
}
