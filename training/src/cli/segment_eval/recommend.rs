//! Which method, size, threshold and borders make the best masks with a model.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_vision::model::{Manifest, Model, OUTPUTS};
use dino_vision::segment::{MaskDefaults, MaskFigures, Method, Options, Refine};

use super::view::{View, centred_box, prediction};
use super::{read, scene};
use crate::cli::backbone::DeviceArgs;
use crate::evaluate::segmentation::Tally;

/// Sizes beside 480 pixels, by the size that the model was made for: weak models see objects best that are not much larger than in
/// training.
const SCALES: [f64; 6] = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0];
/// The size without a recommendation, and the largest that is tried unless the model's own is larger.
const USUAL: u32 = 480;

/// One way to make masks, and how well it did.
struct Candidate {
    defaults: MaskDefaults,
    tally: Tally,
}

/// Measures all candidates, prints the best of each method, and writes the best of all into the manifest in `folder`.
pub(super) fn run(
    model: &Model,
    folder: &Path,
    methods: &[Method],
    device: &DeviceArgs,
    pairs: &[(PathBuf, PathBuf)],
) -> anyhow::Result<()> {
    ensure!(
        folder.join(Manifest::FILE_NAME).is_file(),
        "--recommend writes into the manifest.json of a model folder, and {} has none",
        folder.display()
    );
    let mut centred = Tally::default();
    let mut session = device.session(model)?;
    let outputs: Vec<&str> = OUTPUTS.into_iter().filter(|output| session.has_output(output)).collect();
    let mut candidates = candidates(model, methods, &outputs);
    let mut pictures = 0;
    for (path, mask) in pairs {
        let Some((truth, picture)) = read(path, mask) else { continue };
        pictures += 1;
        let scene = scene(path);
        centred.add(&scene, &truth, &centred_box(picture.dimensions()));
        // Candidates of one size follow one another, and one inference serves them all.
        for same_size in candidates.chunk_by_mut(|a, b| a.defaults.size == b.defaults.size) {
            let view = View::new(&mut session, model, &picture, same_size[0].defaults.size)?;
            for Candidate { defaults, tally } in same_size {
                let MaskDefaults { method, threshold, refine, .. } = *defaults;
                let mut found = view.segment(&Options { method, threshold, ..Options::default() })?;
                if let Some(guide) = refine.guide(&picture) {
                    found.refine(&guide);
                }
                tally.add(&scene, &truth, &prediction(&found.objects, found.grid, view.size));
            }
        }
    }
    ensure!(pictures > 0, "no picture and its mask could be read");
    let usual = |candidate: &&Candidate| {
        let MaskDefaults { method, size, threshold, refine, .. } = candidate.defaults;
        method == Method::Attention && size == USUAL && threshold.is_none() && refine == Refine::None
    };
    let attention = candidates.iter().find(usual).map(|candidate| 100.0 * candidate.tally.jaccard());
    let best = best(&candidates).context("the model has the outputs of none of the methods")?;
    let jaccard = 100.0 * best.tally.jaccard();
    let figures = MaskFigures { pictures, jaccard, centred_box: 100.0 * centred.jaccard(), attention };
    print(&candidates, &centred, pictures);
    let segment = Some(MaskDefaults { figures: Some(figures), ..best.defaults });
    // What it was when it was opened: nothing else of it changes.
    let manifest = Manifest { segment, ..model.manifest().clone() };
    manifest.save(folder)?;
    report(&best.defaults, &figures, folder)
}

/// Everything that is tried, by size.
fn candidates(model: &Model, methods: &[Method], outputs: &[&str]) -> Vec<Candidate> {
    let manifest = model.manifest();
    let own = manifest.transform.output_size().map_or(USUAL, |(height, width)| height.max(width));
    let scaled = SCALES.map(|scale| (f64::from(own) * scale).round() as u32);
    let mut sizes: Vec<u32> = scaled.into_iter().filter(|size| *size <= USUAL.max(own)).chain([USUAL]).collect();
    if let Some((height, width)) = model.only_size() {
        sizes = vec![height.max(width)];
    }
    sizes.sort_unstable();
    sizes.dedup();
    let possible = methods.iter().filter(|method| method.check(outputs).is_ok());
    let ways: Vec<(Method, Option<f32>, Refine)> = possible
        .flat_map(|method| thresholds(*method).iter().map(move |threshold| (*method, *threshold)))
        .flat_map(|(method, threshold)| Refine::ALL.map(|refine| (method, threshold, refine)))
        .collect();
    let candidate = |size, (method, threshold, refine)| Candidate {
        defaults: MaskDefaults { method, size, threshold, refine, figures: None },
        tally: Tally::default(),
    };
    sizes.iter().flat_map(|size| ways.iter().map(|way| candidate(*size, *way))).collect()
}

/// The method's own threshold first: of equal candidates the earlier one is taken.
fn thresholds(method: Method) -> &'static [Option<f32>] {
    match method {
        Method::Attention => &[None, Some(0.4), Some(0.8)],
        Method::Background => &[None, Some(0.2), Some(0.4), Some(0.5)],
        Method::Ncut => &[None, Some(0.1), Some(0.3)],
        Method::Lost => &[None],
        Method::Pca => &[None, Some(0.5)],
        Method::Saliency => &[None, Some(0.8), Some(1.2)],
    }
}

fn best<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    // The first of equals: `max_by` would take the last.
    candidates.into_iter().reduce(|best, other| if other.tally.jaccard() > best.tally.jaccard() { other } else { best })
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(candidates: &[Candidate], centred: &Tally, pictures: usize) {
    println!("{:<12} size  threshold  refine  jaccard   [90 %]          score", format!("{pictures} pictures"));
    for method in Method::ALL {
        let Some(Candidate { defaults, tally }) = best(candidates.iter().filter(|candidate| candidate.defaults.method == method)) else {
            continue;
        };
        let Some(figures) = tally.figures() else { continue };
        let [low, high] = figures.jaccard_interval;
        let threshold = defaults.threshold.unwrap_or_else(|| method.default_threshold());
        let refine = if defaults.refine == Refine::Guided { "guided" } else { "none" };
        let score = figures.score_correlation.map_or_else(String::new, |correlation| format!("{correlation:6.2}"));
        println!(
            "{:<12} {:4}  {threshold:9.2}  {refine:<6}  {:7.2}  [{low:5.1} {high:5.1}]  {score}",
            method.name(),
            defaults.size,
            figures.jaccard
        );
    }
    if let Some(figures) = centred.figures() {
        let [low, high] = figures.jaccard_interval;
        println!("{:<12} {:25}{:7.2}  [{low:5.1} {high:5.1}]", "centred box", "", figures.jaccard);
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn report(best: &MaskDefaults, figures: &MaskFigures, folder: &Path) -> anyhow::Result<()> {
    if figures.jaccard <= figures.centred_box {
        tracing::warn!(
            "a box in the middle of each picture fits better ({:.1} %) than the best masks ({:.1} %): this model is no good for masks",
            figures.centred_box,
            figures.jaccard
        );
    }
    tracing::info!("{} now says how masks are best made", folder.join(Manifest::FILE_NAME).display());
    println!("{}", serde_json::to_string(&MaskDefaults { figures: Some(*figures), ..*best })?);
    Ok(())
}
