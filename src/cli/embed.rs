//! `dino-server embed`: pictures become a file of vectors.

#[cfg(feature = "parquet")]
mod arrow;

use std::sync::OnceLock;

use anyhow::Context as _;
use dino_hub::Location;
use dino_server::encoding::Dtype;
use dino_server::files::shard::Shard;
use dino_server::files::source::{Batch, Failure, Picture, Unit};
use dino_server::files::vectors::parts::{Part, Parts, Row};
use dino_server::files::vectors::{Format, Header, Out};
use dino_server::index::checksum;
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::{self, Embedder, Worker, Workload};
use dino_vision::embedding::Pooling;
use dino_vision::model::{Device, Manifest, Model, Precision, SessionOptions};
use indicatif::ProgressBar;

use super::images::{self, ImagesArgs, READERS};
use super::{open_model, progress};

/// Version of what parts hold.
const PARTS: u32 = 2;

/// Embed pictures into one file. A run that was killed goes on where it was when it is started again with the same flags.
///
/// Rows are in the order of the pictures. Parquet has the columns path (the picture's id), label, sha256 (of its bytes) and
/// embedding; FILE.npy has `FILE.npy.json` beside it. What is no picture is named and left out.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    images: ImagesArgs,
    /// A model folder, or an ONNX file that was exported elsewhere; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub.
    #[arg(long, value_name = "PATH|HF", value_parser = dino_program::flags::location())]
    model: Location,
    /// File to write, .parquet or .npy, which appears once it is complete; or a folder, ending in /, that several jobs fill: each
    /// writes `part-I-of-N.parquet` and `part-I-of-N.failures.jsonl`, the last one _SUCCESS. Either may be in an object storage (s3://, gs://,
    /// az://).
    #[arg(long, value_name = "FILE|FOLDER/", required_unless_present = "arrow")]
    out: Option<Out>,
    /// Read record batches from stdin and answer on stdout, as Arrow IPC streams, in place of --images and --out: `--arrow -`. Answers have
    /// the rows and columns that came, but `embedding` in place of the pictures, and `error`, which says of a picture that cannot be read
    /// what is wrong. They come as soon as they are ready. Ray, Spark and pipes use it.
    #[arg(
        long,
        value_name = "-",
        value_parser = ["-"],
        hide_possible_values = true,
        conflicts_with_all = ["images", "out", "format", "shard", "id_column", "label_column", "skip_unreachable"]
    )]
    arrow: Option<String>,
    /// What the files in a folder are: parquet or npy [default: parquet in builds that write it].
    #[arg(long, default_value_t = Format::USUAL, value_name = "FORMAT", hide_default_value = true)]
    format: Format,
    /// Which tokens become the vector: cls, mean, `cls_mean` or patches (all of them).
    #[arg(long, default_value = "cls")]
    pooling: Pooling,
    /// How numbers are stored: f32, f16, int8 (with scales) or binary (signs).
    #[arg(long, default_value = "f32")]
    dtype: Dtype,
    /// Scale every vector to length 1.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    normalize: bool,
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
    /// Threads inside each.
    #[arg(long, env = "DINO_THREADS", default_value = "1", value_name = "N", value_parser = dino_server::flags::positive)]
    threads: usize,
    /// Most pictures in one run of the model [default: 1 on a CPU, else 64].
    #[arg(long, value_name = "N", value_parser = dino_server::flags::positive)]
    batch: Option<usize>,
}

/// What a picture comes to.
type Outcome = Result<(Row, Vec<f32>), bulk::Error>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.arrow.is_some() {
        #[cfg(feature = "parquet")]
        return arrow::run(args);
        #[cfg(not(feature = "parquet"))]
        anyhow::bail!(dino_server::files::NO_ARROW);
    }
    let out = args.out.as_ref().context("give --out FILE")?;
    let model = open_model(&args.model, args.precision)?;
    let source = args.images.open()?;
    let mut header = header(args, &model)?;
    let file = model.manifest().files.get(&header.precision).map_or("", |file| &file.sha256);
    let settings = format!("{}\n{}\n{file}", PARTS, header.fingerprint);
    let run = format!("{settings}\n{}\n{}\n{}\n{}", header.dtype, header.normalize, header.shard.count(), source.listing);
    header.run = checksum::of_bytes(run.as_bytes());
    let name = |(index, stamp): (usize, String)| {
        let hash = checksum::of_bytes(format!("{settings}\n{stamp}").as_bytes());
        format!("{index:08}-{}", &hash[..32])
    };
    let names: Vec<String> = source.stamps()?.into_iter().enumerate().map(name).collect();
    header.inputs = checksum::of_bytes(format!("{}\n{}\n{}", header.dtype, header.normalize, names.join("\n")).as_bytes());
    let target = out.target(header.shard, args.format).map_err(anyhow::Error::msg)?;
    if let Some(standing) = target.header()? {
        let path = target.shown();
        anyhow::ensure!(
            standing.shard == header.shard,
            "{path} holds part {} of the pictures: give part {} another --out",
            standing.shard,
            header.shard
        );
        if target.is_made(&standing, &header) && !source.gives_any(&standing.refused)? {
            target.end(&header)?;
            done(&format!("{path} is up to date"), standing.skipped);
            return Ok(());
        }
    }

    target.begin()?;
    let parts = Parts::open(&target.storage, &target.name)?;
    for failure in &source.failures {
        super::skipped(&failure.path, &failure.reason);
    }
    if let Some((count, first)) = &source.repeated {
        repeated(*count, first);
    }
    let finder = Finder::default();
    let known = source.units.iter().filter_map(|unit| unit.count()).sum();
    let mut run = Run {
        args,
        model: &model,
        header: &header,
        is_remote: source.is_remote,
        embedder: None,
        parts,
        progress: progress(known),
        count: 0,
        skipped: source.failures.clone(),
        refused: Vec::new(),
        unreachable: 0,
        with_more_labels: 0,
        finder: &finder,
    };
    for (unit, name) in source.units.iter().zip(&names) {
        run.unit(unit.as_ref(), name)?;
    }
    let Run { count, skipped, refused, unreachable, with_more_labels, parts, progress, .. } = run;
    progress.finish_and_clear();
    images::other_forms(&finder);
    anyhow::ensure!(
        unreachable == 0,
        "{unreachable} pictures are on hosts that do not answer, and nothing was written: run this again to go on, or with --skip-unreachable to \
         leave them out"
    );
    if with_more_labels > 0 {
        only_first(with_more_labels);
    }
    // A part of several may hold nothing else than what cannot be read.
    let nothing_read = count == 0 && header.shard == Shard::WHOLE;
    anyhow::ensure!(!nothing_read, "no readable picture in {} ({} skipped)", args.images.shown(), skipped.len());
    header.skipped = skipped.len();
    header.refused = refused;
    target.write_failures(&skipped)?;
    target.write(&header, &parts)?;
    parts.remove()?;
    target.end(&header)?;
    done(&format!("wrote {count} embeddings of {} numbers to {}", header.rows * header.dim, target.shown()), skipped.len());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn done(what: &str, skipped: usize) {
    println!("{what}; {skipped} files skipped");
}

#[expect(clippy::print_stderr, reason = "for the user of the command")]
fn only_first(pictures: usize) {
    eprintln!("{pictures} pictures have several labels, of which the first is written");
}

#[expect(clippy::print_stderr, reason = "for the user of the command")]
fn repeated(count: usize, first: &str) {
    eprintln!(
        "{count} pictures have an id that came before, the first: {first}: each has a row, and `import --table` refuses such a table"
    );
}

fn header(args: &Args, model: &Model) -> anyhow::Result<Header> {
    let manifest = model.manifest();
    Ok(Header {
        format: Header::FORMAT,
        made_by: concat!("dino-server ", env!("CARGO_PKG_VERSION")).to_owned(),
        architecture: manifest.architecture.clone(),
        weights: manifest.source.sha256.clone(),
        fingerprint: model.fingerprint(args.pooling),
        pooling: args.pooling,
        precision: model.precision(args.precision).to_string(),
        dtype: args.dtype,
        normalize: args.normalize,
        dim: args.pooling.dim(manifest.dim as usize),
        rows: rows(args.pooling, manifest)?,
        shard: args.images.shard,
        skipped: 0,
        refused: Vec::new(),
        inputs: String::new(),
        run: String::new(),
    })
}

/// Vectors of one picture.
fn rows(pooling: Pooling, manifest: &Manifest) -> anyhow::Result<usize> {
    match (pooling, manifest.transform.output_size()) {
        (Pooling::Patches, Some((height, width))) => Ok(((height / manifest.patch_size) * (width / manifest.patch_size)) as usize),
        (Pooling::Patches, None) => {
            anyhow::bail!("pictures of this model have different numbers of patches: set `crop` in its manifest.json, or another --pooling")
        }
        _ => Ok(1),
    }
}

/// The model, ready for pictures.
fn open(args: &Args, model: &Model) -> anyhow::Result<Embedder> {
    let options = SessionOptions {
        device: args.device,
        precision: args.precision,
        threads: args.threads,
        trust_device: args.trust_device,
        ..SessionOptions::default()
    };
    Ok(Embedder::open(model, args.pooling, &options, Workload { sessions: args.sessions, batch: args.batch })?)
}

/// A run, unit by unit.
struct Run<'a> {
    args: &'a Args,
    model: &'a Model,
    header: &'a Header,
    is_remote: bool,
    /// Opened for the first picture that is not embedded yet.
    embedder: Option<Embedder>,
    parts: Parts,
    progress: ProgressBar,
    count: usize,
    skipped: Vec<Failure>,
    /// Ids of those of them that a storage refused while it gave others.
    refused: Vec<String>,
    /// Pictures that another run may find.
    unreachable: usize,
    /// Pictures of this run whose labels are not all written.
    with_more_labels: usize,
    /// Of files whose names have another Unicode form than their ids.
    finder: &'a Finder,
}

impl Run<'_> {
    /// Makes the parts of a unit that are not there yet. Its first part has its name, further ones a number behind it.
    fn unit(&mut self, unit: &dyn Unit, name: &str) -> anyhow::Result<()> {
        let name_of = |number: usize| if number == 0 { name.to_owned() } else { format!("{name}.{number}") };
        let mut number = 0;
        while let Some(part) = self.parts.take(&name_of(number))? {
            let pictures = part.rows.len() + part.skipped.len();
            if unit.count().is_none() {
                self.progress.inc_length(pictures as u64);
            }
            self.progress.inc(pictures as u64);
            self.progress.reset_eta();
            for failure in &part.skipped {
                self.skip(failure);
            }
            self.count += part.rows.len();
            if part.is_last {
                return Ok(());
            }
            number += 1;
        }
        let mut batches = unit.batches()?.skip(number).peekable();
        loop {
            let batch = batches.next().unwrap_or_default();
            let is_last = batches.peek().is_none();
            if unit.count().is_none() {
                self.progress.inc_length(batch.pictures.len() as u64);
            }
            let (unreachable, refused) = (self.unreachable, self.refused.len());
            let part = Part { is_last, ..self.embed(batch)? };
            // A batch with a picture that is missing for now is made anew by the next run, which does not look for the second name.
            if self.unreachable == unreachable {
                let name = name_of(number);
                let name = if self.refused.len() == refused { name } else { format!("{name}.refused") };
                self.parts.save(&name, &part)?;
            }
            if is_last {
                return Ok(());
            }
            number += 1;
        }
    }

    fn skip(&mut self, failure: &Failure) {
        self.progress.suspend(|| super::skipped(&failure.path, &failure.reason));
        self.skipped.push(failure.clone());
    }

    fn embed(&mut self, batch: Batch) -> anyhow::Result<Part> {
        let Batch { pictures, failures } = batch;
        let mut part = Part::default();
        for failure in failures {
            self.skip(&failure);
            part.skipped.push(failure);
        }
        if pictures.is_empty() {
            return Ok(part);
        }
        let mut embedder = match self.embedder.take() {
            Some(embedder) => embedder,
            None if self.is_remote => open(self.args, self.model)?.with_readers(READERS),
            None => open(self.args, self.model)?,
        };
        // Why the storage of the pictures fails: nothing else is read from it then.
        let (progress, storage, finder) = (self.progress.clone(), OnceLock::<String>::new(), self.finder);
        let work = |worker: &mut Worker<'_>, index: usize| {
            if let Some(reason) = storage.get() {
                return Err(bulk::Error::Storage(reason.clone()));
            }
            let outcome = embed_picture(worker, &pictures[index], finder);
            if let Err(bulk::Error::Storage(reason)) = &outcome {
                // The first reason stays.
                let _ = storage.set(reason.clone());
            }
            progress.inc(1);
            outcome
        };
        embedder.each(pictures.len(), work, |range, outcomes| {
            for (picture, outcome) in pictures[range].iter().zip(outcomes) {
                self.collect(&mut part, picture, outcome)?;
            }
            anyhow::Ok(())
        })?;
        self.embedder = Some(embedder);
        Ok(part)
    }

    fn collect(&mut self, part: &mut Part, picture: &Picture, outcome: Outcome) -> anyhow::Result<()> {
        match outcome {
            Ok((row, vector)) => {
                let wanted = self.header.rows * self.header.dim;
                anyhow::ensure!(vector.len() == wanted, "the model gave {} numbers for {}, not {wanted}", vector.len(), row.path);
                self.with_more_labels += usize::from(picture.labels.len() > 1);
                part.rows.push(row);
                part.vectors.extend(vector);
                self.count += 1;
            }
            Err(error) if error.is_of_file() => {
                let failure = Failure { id: picture.id.clone(), path: picture.place.shown(), reason: error.to_string() };
                if matches!(error, bulk::Error::Refused(_)) {
                    self.refused.push(picture.id.clone());
                }
                if error.is_transient() && !self.args.images.skip_unreachable {
                    self.unreachable += 1;
                }
                self.skip(&failure);
                part.skipped.push(failure);
            }
            Err(error) => return Err(anyhow::Error::new(error).context(picture.place.shown())),
        }
        Ok(())
    }
}

fn embed_picture(worker: &mut Worker<'_>, picture: &Picture, finder: &Finder) -> Outcome {
    let bytes = images::read(&picture.place, finder)?;
    let (_, vector) = worker.embed(&bytes)?;
    Ok((Row { path: picture.id.clone(), label: picture.labels.first().cloned(), sha256: checksum::of_bytes(&bytes) }, vector))
}
