//! `dino-server import`: an `ImageFolder` becomes a collection.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use dino_server::bulk::tree::{self, Entry, Skipped};
use dino_server::bulk::{self, Embedder, Worker, all_cores};
use dino_server::embedding::Pooling;
use dino_server::index::{Collection, CollectionName, Error, Item, MAX_TEXT, ModelTag, NewItem, Spec, checksum};
use dino_server::media;
use dino_server::model::{Device, Precision, SessionOptions};
use indicatif::ProgressBar;

use super::store::StoreArgs;
use super::{open_model, progress};

/// Embed the pictures of a folder and store them as a labelled collection. Run it again to go on after an interruption,
/// or to take up what has changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of pictures; the folders directly below it are the classes. Every file is tried, whatever its name.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Collection to fill; made where it does not exist.
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: CollectionName,
    #[command(flatten)]
    store: StoreArgs,
    /// A model folder, or an ONNX file that was exported elsewhere.
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// Precision to embed with; collections of one model mix them.
    #[arg(long, env = "DINO_PRECISION", default_value = "f32")]
    precision: Precision,
    /// Where the model runs: auto, cpu, cuda[:N] or tensorrt[:N].
    #[arg(long, env = "DINO_DEVICE", default_value = "auto")]
    device: Device,
    /// Pictures per class that keep a thumbnail; all of them if this is left out.
    #[arg(long, value_name = "N")]
    thumbnails: Option<usize>,
    /// Embed again what is there with the same content.
    #[arg(long)]
    force: bool,
    /// Pictures embedded at once; one per core if this is left out.
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

/// What became of one file.
enum Outcome {
    New(Box<NewItem>),
    Unchanged,
    Skipped(Skipped),
    /// The model fails: everything ends.
    Failed(bulk::Error),
}

#[derive(Default)]
struct Counts {
    stored: usize,
    unchanged: usize,
    skipped: usize,
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let listing = tree::list(&args.images)?;
    let model = open_model(&args.model)?;
    let store = args.store.open()?;
    let fingerprint = model.fingerprint(Pooling::Cls);
    let present = match store.collection(&args.collection) {
        Ok(collection) => {
            collection.check_model(&fingerprint)?;
            if args.force { HashMap::new() } else { collection.sources()? }
        }
        Err(Error::NoCollection(_)) => HashMap::new(),
        Err(error) => return Err(error.into()),
    };
    let session = SessionOptions { device: args.device, precision: args.precision, threads: 1 };
    let mut embedder = Embedder::open(&model, Pooling::Cls, &session, args.workers.unwrap_or_else(all_cores))?;
    let tag = ModelTag { fingerprint, precision: Some(model.precision(args.precision).to_string()) };
    let spec = Spec { dim: embedder.dim(), model: tag };

    let progress = progress(listing.entries.len());
    let mut counts = Counts::default();
    for skipped in &listing.skipped {
        counts.skip(&progress, skipped);
    }
    let with_thumbnail = with_thumbnail(&listing.entries, args.thumbnails);
    let work = |worker: &mut Worker<'_>, index: usize| {
        let entry = &listing.entries[index];
        let outcome = embed(worker, entry, present.get(&entry.id), with_thumbnail[index]);
        progress.inc(1);
        outcome
    };
    embedder.each(listing.entries.len(), work, |_, outcomes| -> anyhow::Result<()> {
        let mut items = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::New(item) => items.push(*item),
                Outcome::Unchanged => counts.unchanged += 1,
                Outcome::Skipped(skipped) => counts.skip(&progress, &skipped),
                Outcome::Failed(error) => return Err(error.into()),
            }
        }
        counts.stored += items.len();
        if !items.is_empty() {
            // The collection appears with the first picture in it.
            store.create(&args.collection, spec.clone())?.0.upsert(items)?;
        }
        Ok(())
    })?;
    progress.finish_and_clear();

    let Counts { stored, unchanged, skipped } = counts;
    anyhow::ensure!(stored + unchanged > 0, "no readable picture in {} ({skipped} skipped)", args.images.display());
    let collection: Arc<dyn Collection> = store.collection(&args.collection)?;
    collection.build_if_due()?;
    println!(
        "collection {}: {stored} stored, {unchanged} unchanged, {skipped} skipped; {} items in all",
        args.collection,
        collection.info()?.count,
    );
    Ok(())
}

fn embed(worker: &mut Worker<'_>, entry: &Entry, present: Option<&Option<String>>, thumbnail: bool) -> Outcome {
    let skip = |reason: String| Outcome::Skipped(Skipped { path: entry.path.clone(), reason });
    if entry.id.len() > MAX_TEXT {
        return skip(format!("its path below the folder is longer than {MAX_TEXT} bytes"));
    }
    let bytes = match bulk::read(&entry.path) {
        Ok(bytes) => bytes,
        Err(error) => return skip(error.to_string()),
    };
    let source = Some(checksum::of_bytes(&bytes));
    if present == Some(&source) {
        return Outcome::Unchanged;
    }
    let (picture, vector) = match worker.embed(&bytes) {
        Ok(embedded) => embedded,
        Err(error) if error.is_of_file() => return skip(error.to_string()),
        Err(error) => return Outcome::Failed(error),
    };
    let thumbnail = thumbnail.then(|| media::thumbnail(&picture));
    let labels = entry.class.iter().cloned().collect();
    let item = Item { id: entry.id.clone(), labels, source, ..Item::default() };
    Outcome::New(Box::new(NewItem { item, vector, thumbnail }))
}

impl Counts {
    #[expect(clippy::print_stderr, reason = "a file that is left out is named to the one who imports it")]
    fn skip(&mut self, progress: &ProgressBar, Skipped { path, reason }: &Skipped) {
        self.skipped += 1;
        progress.suspend(|| eprintln!("skipped {}: {reason}", path.display()));
    }
}

/// Which entries are among the first `per_class` of their class.
fn with_thumbnail(entries: &[Entry], per_class: Option<usize>) -> Vec<bool> {
    let mut seen: HashMap<Option<&str>, usize> = HashMap::new();
    let mut among_first = Vec::with_capacity(entries.len());
    for entry in entries {
        let count = seen.entry(entry.class.as_deref()).or_default();
        *count += 1;
        among_first.push(per_class.is_none_or(|most| *count <= most));
    }
    among_first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_are_counted_by_class() {
        let entry = |class: &str| Entry { path: PathBuf::new(), id: String::new(), class: Some(class.into()) };
        let entries = [entry("a"), entry("b"), entry("a"), entry("a")];
        assert_eq!(with_thumbnail(&entries, Some(2)), [true, true, true, false]);
        assert_eq!(with_thumbnail(&entries, None), [true; 4]);
        assert_eq!(with_thumbnail(&entries, Some(0)), [false; 4]);
    }
}
