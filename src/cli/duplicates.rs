//! `dino-server duplicates`: the near-copies of a folder.

use std::path::PathBuf;

use dino_hub::Location;
use dino_server::files::duplicates::{File, Group, Report, SkippedFile, Target};
use dino_server::index::checksum;
use dino_vision::bulk::tree::{self, Entry};
use dino_vision::bulk::{self, BATCH, Embedder, Worker, Workload};
use dino_vision::duplicates::{Candidate, Candidates, DEFAULT_SIMILARITY, Fingerprint, Kind, Options};
use dino_vision::embedding::Pooling;
use dino_vision::media::{self, Limits};
use dino_vision::model::{Device, Precision, SessionOptions};
use rayon::prelude::*;

use super::{bar, open_model, progress};

/// Find near-copies among the pictures of a folder. No file is changed.
///
/// Without a model: files with the same pixels, which were encoded again or are of another size. With one also pictures of the same
/// scene, as groups of their own kind. The report says of each group what connects it; its first file has the most pixels. Without --out
/// it goes to stdout, as JSON.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of pictures. Every file is tried, whatever its name.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// A model folder, or an ONNX file that was exported elsewhere; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub. Without
    /// one, pixels alone are compared.
    #[arg(long, value_name = "PATH|HF", value_parser = dino_program::flags::location())]
    model: Option<Location>,
    /// The least cosine of two pictures of one scene, 0.5 to 1 [default: 0.95].
    #[arg(long, value_name = "COSINE", requires = "model", value_parser = similarity)]
    min_similarity: Option<f32>,
    /// File to write, .json or .html (with small pictures); may be given twice.
    #[arg(long, value_name = "FILE")]
    out: Vec<Target>,
    /// Which of the model's files to run: f32, f16 or int8.
    #[arg(long, env = "DINO_PRECISION", default_value = "f32")]
    precision: Precision,
    /// Where the model runs: auto (the fastest that is there), cpu, cuda[:N], tensorrt[:N], openvino[:CPU|GPU|NPU] or
    /// plugin:PATH[:N].
    #[arg(long, env = "DINO_DEVICE", default_value = "auto")]
    device: Device,
    /// Use a device although it does not compute what ONNX Runtime's CPU computes.
    #[arg(long, env = "DINO_TRUST_DEVICE")]
    trust_device: bool,
    /// Copies of the model that run side by side [default: one per core on a CPU, else 1].
    #[arg(long, env = "DINO_SESSIONS", value_name = "N", value_parser = dino_server::flags::positive)]
    sessions: Option<usize>,
    /// Most pictures in one run of the model [default: 1 on a CPU, else 64].
    #[arg(long, value_name = "N", value_parser = dino_server::flags::positive)]
    batch: Option<usize>,
}

fn similarity(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.5..=1.0).contains(&value) { Ok(value) } else { Err("must lie between 0.5 and 1".to_owned()) }
}

/// A picture that was read.
struct Picture {
    fingerprint: Fingerprint,
    source: String,
    bytes: u64,
    vector: Vec<f32>,
}

type Outcome = Result<Picture, bulk::Error>;

/// The pictures of the folder, as they are compared and as they are reported.
struct Pictures<'a> {
    entries: &'a [Entry],
    candidates: Candidates,
    /// Size of each file, in bytes.
    sizes: Vec<u64>,
    skipped: Vec<SkippedFile>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let listing = tree::list(&args.images)?;
    anyhow::ensure!(!listing.entries.is_empty(), "no file in {}", args.images.display());
    let model = args.model.as_ref().map(|location| open_model(location, args.precision)).transpose()?;
    let embedder = model.as_ref().map(|model| {
        let options =
            SessionOptions { device: args.device, precision: args.precision, trust_device: args.trust_device, ..SessionOptions::default() };
        Embedder::open(model, Pooling::Cls, &options, Workload { sessions: args.sessions, batch: args.batch })
    });
    let mut embedder = embedder.transpose()?;

    let candidates = Candidates::new(embedder.as_ref().map(Embedder::dim));
    let mut pictures = Pictures { entries: &listing.entries, candidates, sizes: Vec::new(), skipped: Vec::new() };
    for skipped in listing.skipped {
        super::skipped(&skipped.path.display().to_string(), &skipped.reason);
        pictures.skipped.push(SkippedFile { path: skipped.path.display().to_string(), reason: skipped.reason });
    }
    match &mut embedder {
        Some(embedder) => pictures.embed(embedder)?,
        None => pictures.read()?,
    }
    drop(embedder);
    let count = pictures.candidates.len();
    anyhow::ensure!(count > 0, "no readable picture in {} ({} skipped)", args.images.display(), pictures.skipped.len());

    let min_similarity = model.is_some().then(|| args.min_similarity.unwrap_or(DEFAULT_SIMILARITY));
    let comparing = bar("comparing", 1000);
    let found = pictures.candidates.compare(Options { min_similarity }, &|share| comparing.set_position((share * 1000.0) as u64))?;
    comparing.finish_and_clear();

    let flat = (0..count).filter(|&item| pictures.candidates.fingerprint(item).is_some_and(Fingerprint::is_flat)).count();
    let report = Report {
        images: args.images.display().to_string(),
        pictures: count,
        flat,
        model: model.as_ref().map(|model| model.fingerprint(Pooling::Cls)),
        min_similarity,
        groups: pictures.groups(&found.groups),
        skipped: pictures.skipped,
    };
    write(args, &report)
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn write(args: &Args, report: &Report) -> anyhow::Result<()> {
    if args.out.is_empty() {
        print!("{}", String::from_utf8_lossy(&report.json()?));
        return Ok(());
    }
    let thumbnail = |path: &str| {
        let bytes = bulk::read(&args.images.join(path)).ok()?;
        Some(media::thumbnail(&media::decode(&bytes, &Limits::default()).ok()?))
    };
    for target in &args.out {
        report.write(target, thumbnail)?;
    }
    let [(copies, copied), (similar, alike)] = [Kind::Copy, Kind::Similar].map(|kind| report.count(kind));
    println!(
        "{} pictures: {copies} groups of {copied} files with the same pixels, {similar} groups of {alike} similar files; {} files skipped",
        report.pictures,
        report.skipped.len()
    );
    Ok(())
}

impl Pictures<'_> {
    /// Reads all pictures, and embeds them.
    fn embed(&mut self, embedder: &mut Embedder) -> anyhow::Result<()> {
        let (entries, progress) = (self.entries, progress(self.entries.len()));
        let work = |worker: &mut Worker<'_>, index: usize| -> Outcome {
            let bytes = bulk::read(&entries[index].path)?;
            let (picture, vector) = worker.embed(&bytes)?;
            progress.inc(1);
            Ok(Picture { fingerprint: Fingerprint::of(&picture), source: checksum::of_bytes(&bytes), bytes: bytes.len() as u64, vector })
        };
        embedder.each(entries.len(), work, |range, outcomes| self.take(&entries[range], outcomes, &progress))?;
        progress.finish_and_clear();
        Ok(())
    }

    /// Reads all pictures.
    fn read(&mut self) -> anyhow::Result<()> {
        let (entries, progress) = (self.entries, bar("reading", self.entries.len()));
        let work = |entry: &Entry| -> Outcome {
            let bytes = bulk::read(&entry.path)?;
            let picture = media::decode(&bytes, &Limits::default())?;
            progress.inc(1);
            let (fingerprint, source) = (Fingerprint::of(&picture), checksum::of_bytes(&bytes));
            Ok(Picture { fingerprint, source, bytes: bytes.len() as u64, vector: Vec::new() })
        };
        for part in entries.chunks(BATCH) {
            let outcomes = part.par_iter().map(work).collect();
            self.take(part, outcomes, &progress)?;
        }
        progress.finish_and_clear();
        Ok(())
    }

    fn take(&mut self, entries: &[Entry], outcomes: Vec<Outcome>, progress: &indicatif::ProgressBar) -> anyhow::Result<()> {
        for (entry, outcome) in entries.iter().zip(outcomes) {
            match outcome {
                Ok(Picture { fingerprint, source, bytes, vector }) => {
                    self.candidates.push(Candidate {
                        id: &entry.id,
                        source: Some(&source),
                        fingerprint: Some(&fingerprint),
                        vector: &vector,
                    });
                    self.sizes.push(bytes);
                }
                Err(error) if error.is_of_file() => {
                    let (path, reason) = (entry.path.display().to_string(), error.to_string());
                    progress.suspend(|| super::skipped(&path, &reason));
                    self.skipped.push(SkippedFile { path, reason });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn groups(&self, found: &[dino_vision::duplicates::Group]) -> Vec<Group> {
        let file = |member: &dino_vision::duplicates::Member| {
            let (width, height) = self.candidates.fingerprint(member.item).map_or((0, 0), Fingerprint::size);
            File {
                path: self.candidates.id(member.item).to_owned(),
                width,
                height,
                bytes: self.sizes[member.item],
                similarity: member.similarity,
                same_pixels: member.same_pixels,
                copy_of: member.copy_of.map(|largest| self.candidates.id(largest).to_owned()),
            }
        };
        let group = |group: &dino_vision::duplicates::Group| Group {
            kind: group.kind,
            lowest_similarity: group.lowest_similarity,
            items: group.members.iter().map(file).collect(),
        };
        found.iter().map(group).collect()
    }
}
