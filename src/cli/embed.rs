//! `dino-server embed`: a folder of pictures becomes a file of vectors.

use std::fmt::Write;
use std::path::PathBuf;

use dino_hub::Location;
use dino_server::encoding::Dtype;
use dino_server::files::shard::Shard;
use dino_server::files::vectors::parts::{Part, Parts, Row};
use dino_server::files::vectors::{Header, Target};
use dino_server::index::checksum;
use dino_vision::bulk::tree::{self, Entry, Skipped};
use dino_vision::bulk::{self, BATCH, Embedder, Worker, Workload};
use dino_vision::embedding::Pooling;
use dino_vision::model::{Device, Manifest, Model, Precision, SessionOptions};
use indicatif::ProgressBar;

use super::{open_model, progress};

/// Embed the pictures of a folder into one file. A run that was killed goes on where it was when it is started again with
/// the same flags.
///
/// Rows are in the order of the paths below the folder. Parquet has the columns path, label (the folder directly below
/// DIR), sha256 (of the file) and embedding; FILE.npy has `FILE.npy.json` beside it. Files that are no pictures are named
/// and left out.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of pictures. Every file is tried, whatever its name.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// A model folder, or an ONNX file that was exported elsewhere; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub.
    #[arg(long, value_name = "PATH|HF", value_parser = dino_program::flags::location())]
    model: Location,
    /// File to write, .parquet or .npy. It appears once it is complete.
    #[arg(long, value_name = "FILE")]
    out: Target,
    /// Embed only part I (from 0) of N. N jobs with a file each share a folder, and need not know of each other.
    #[arg(long, default_value_t = Shard::WHOLE, value_name = "I/N")]
    shard: Shard,
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

/// What a file comes to.
type Outcome = Result<(Row, Vec<f32>), bulk::Error>;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let model = open_model(&args.model, args.precision)?;
    let mut listing = tree::list(&args.images)?;
    anyhow::ensure!(!listing.entries.is_empty(), "no file in {}", args.images.display());
    listing.entries.retain(|entry| args.shard.holds(&entry.id));
    listing.skipped.retain(|skipped| args.shard.holds(&skipped.path.strip_prefix(&args.images).unwrap_or(&skipped.path).to_string_lossy()));

    let mut header = header(args, &model)?;
    let file = model.manifest().files.get(&header.precision).map_or("", |file| &file.sha256);
    let names: Vec<String> = listing
        .entries
        .chunks(BATCH)
        .enumerate()
        .map(|(index, entries)| format!("{index:08}-{}", &hash_of(&header.fingerprint, file, entries)[..32]))
        .collect();
    header.inputs = checksum::of_bytes(format!("{}\n{}\n{}", header.dtype, header.normalize, names.join("\n")).as_bytes());
    if let Some(standing) = args.out.header()? {
        let path = args.out.path().display();
        anyhow::ensure!(
            standing.shard == header.shard,
            "{path} holds part {} of a folder: give part {} another --out",
            standing.shard,
            args.shard
        );
        if standing.inputs == header.inputs {
            done(&format!("{path} is up to date"), standing.skipped);
            return Ok(());
        }
    }

    let parts = Parts::open(args.out.path(), names)?;
    for Skipped { path, reason } in &listing.skipped {
        super::skipped(&path.display().to_string(), reason);
    }
    embed(args, &model, &header, &listing.entries, &parts)?;
    let (mut count, mut skipped) = (0, listing.skipped.len());
    for index in 0..parts.len() {
        let part = parts.load(index)?;
        (count, skipped) = (count + part.rows.len(), skipped + part.skipped.len());
    }
    let nothing_read = count == 0 && !listing.entries.is_empty();
    anyhow::ensure!(!nothing_read, "no readable picture in {} ({skipped} skipped)", args.images.display());
    header.skipped = skipped;
    args.out.write(&header, &parts)?;
    parts.remove()?;
    done(&format!("wrote {count} embeddings of {} numbers to {}", header.rows * header.dim, args.out.path().display()), skipped);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn done(what: &str, skipped: usize) {
    println!("{what}; {skipped} files skipped");
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
        shard: args.shard,
        skipped: 0,
        inputs: String::new(),
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

/// Says which vectors a part holds: those of `entries` as they are now, by a model and one of its files.
fn hash_of(fingerprint: &str, file: &str, entries: &[Entry]) -> String {
    let mut text = format!("{}\n{fingerprint}\n{file}\n", Header::FORMAT);
    for entry in entries {
        // A file that cannot be asked cannot be read either, and is skipped then.
        let data = fs_err::metadata(&entry.path).ok();
        let size = data.as_ref().map(std::fs::Metadata::len);
        let modified = data.and_then(|data| data.modified().ok());
        writeln!(text, "{}\0{size:?}\0{modified:?}", entry.id).expect("text takes every write");
    }
    checksum::of_bytes(text.as_bytes())
}

/// Makes the parts that are not there yet.
fn embed(args: &Args, model: &Model, header: &Header, entries: &[Entry], parts: &Parts) -> anyhow::Result<()> {
    let (made, missing): (Vec<usize>, Vec<usize>) = (0..parts.len()).partition(|&index| parts.has(index));
    for index in made {
        for (path, reason) in parts.load(index)?.skipped {
            super::skipped(&path.display().to_string(), &reason);
        }
    }
    let files: Vec<usize> = missing.iter().flat_map(|&part| part * BATCH..entries.len().min((part + 1) * BATCH)).collect();
    if files.is_empty() {
        return Ok(());
    }
    let options = SessionOptions {
        device: args.device,
        precision: args.precision,
        threads: args.threads,
        trust_device: args.trust_device,
        ..SessionOptions::default()
    };
    let mut embedder = Embedder::open(model, args.pooling, &options, Workload { sessions: args.sessions, batch: args.batch })?;
    let progress = progress(entries.len());
    progress.set_position((entries.len() - files.len()) as u64);
    progress.reset_eta();
    let work = |worker: &mut Worker<'_>, index: usize| {
        let outcome = embed_file(worker, &entries[files[index]]);
        progress.inc(1);
        outcome
    };
    embedder.each(files.len(), work, |range, outcomes| {
        let part = collect(header, entries, &files[range.clone()], outcomes, &progress)?;
        // Parts are full but for the last, so that batches of missing files are parts again.
        Ok::<_, anyhow::Error>(parts.save(missing[range.start / BATCH], &part)?)
    })?;
    progress.finish_and_clear();
    Ok(())
}

fn embed_file(worker: &mut Worker<'_>, entry: &Entry) -> Outcome {
    let bytes = bulk::read(&entry.path)?;
    let (_, vector) = worker.embed(&bytes)?;
    Ok((Row { path: entry.id.clone(), label: entry.class.clone(), sha256: checksum::of_bytes(&bytes) }, vector))
}

fn collect(header: &Header, entries: &[Entry], files: &[usize], outcomes: Vec<Outcome>, progress: &ProgressBar) -> anyhow::Result<Part> {
    let mut part = Part::default();
    for (&file, outcome) in files.iter().zip(outcomes) {
        match outcome {
            Ok((row, vector)) => {
                let wanted = header.rows * header.dim;
                anyhow::ensure!(vector.len() == wanted, "the model gave {} numbers for {}, not {wanted}", vector.len(), row.path);
                part.rows.push(row);
                part.vectors.extend(vector);
            }
            Err(error) if error.is_of_file() => {
                progress.suspend(|| super::skipped(&entries[file].path.display().to_string(), &error.to_string()));
                part.skipped.push((entries[file].path.clone(), error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(part)
}
