//! Importing pictures: each is embedded, unless it is there already.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dino_server::files::table::{Entry, Pictures};
use dino_server::index::{Collection, Item, MAX_STRING, ModelTag, NewItem, Spec, checksum};
use dino_vision::bulk::names::{self, Finder};
use dino_vision::bulk::tree::Listing;
use dino_vision::bulk::{self, Embedder, Worker, Workload};
use dino_vision::duplicates::Fingerprint;
use dino_vision::embedding::Pooling;
use dino_vision::media;
use dino_vision::model::SessionOptions;
use dino_vision::unicode::nfc;

use super::{Args, Target};
use crate::cli::{open_model, progress};

/// A picture and the item that it becomes.
pub(super) struct Job {
    path: PathBuf,
    item: Item,
}

/// All pictures, and what was left out before they were read: its name, and why.
pub(super) struct Jobs {
    all: Vec<Job>,
    skipped: Vec<(String, String)>,
    /// Whether labels and metadata may have changed where the picture has not.
    described: bool,
}

impl Jobs {
    pub(super) fn of_folder(listing: Listing) -> Self {
        let mut skipped: Vec<_> = listing.skipped.into_iter().map(|file| (file.path.display().to_string(), file.reason)).collect();
        let mut jobs = Vec::with_capacity(listing.entries.len());
        let names: Vec<&str> = listing.entries.iter().map(|entry| entry.id.as_str()).collect();
        let ids: Vec<String> = names::ids(&names, dino_server::index::MAX_STRING).into_iter().map(Cow::into_owned).collect();
        for (entry, id) in listing.entries.into_iter().zip(ids) {
            if id.len() > MAX_STRING {
                skipped.push((entry.path.display().to_string(), format!("its path below the folder is longer than {MAX_STRING} bytes")));
            } else {
                let label = entry.class.map(|class| nfc(&class).into_owned());
                let item = Item { id, labels: label.into_iter().collect(), ..Item::default() };
                jobs.push(Job { path: entry.path, item });
            }
        }
        Self { all: jobs, skipped, described: false }
    }

    pub(super) fn of_table(file: &Path, root: &Path, pictures: Pictures) -> Self {
        let job = |Entry { path, item, .. }| Job { path: root.join(path), item };
        let skipped = |(row, reason)| (format!("row {row} of {}", file.display()), reason);
        Self {
            all: pictures.entries.into_iter().map(job).collect(),
            skipped: pictures.skipped.into_iter().map(skipped).collect(),
            described: true,
        }
    }
}

/// What became of one picture.
enum Outcome {
    New(Box<NewItem>),
    Unchanged,
    Skipped(String),
    /// The model or the store fails: everything ends.
    Failed(anyhow::Error),
}

pub(super) fn run(args: &Args, from: &Path, jobs: Jobs) -> anyhow::Result<()> {
    let path =
        args.model.as_ref().ok_or_else(|| anyhow::anyhow!("{} holds pictures: give --model PATH to embed them with", from.display()))?;
    let model = open_model(path, args.precision)?;
    let tag = ModelTag { fingerprint: model.fingerprint(Pooling::Cls), precision: Some(model.precision(args.precision).to_string()) };
    let dim = Pooling::Cls.dim(model.manifest().dim as usize);
    let mut target = Target::open(args, Spec::pictures(dim, tag))?;
    let session =
        SessionOptions { device: args.device, precision: args.precision, trust_device: args.trust_device, ..SessionOptions::default() };
    let mut embedder = Embedder::open(&model, Pooling::Cls, &session, Workload { sessions: args.sessions, batch: args.batch })?;

    let Jobs { all: jobs, skipped, described } = jobs;
    let progress = progress(jobs.len());
    for (what, reason) in &skipped {
        target.skip(&progress, what, reason);
    }
    let with_thumbnail = with_thumbnail(&jobs, args.thumbnails);
    let present = if args.force { HashMap::new() } else { std::mem::take(&mut target.present) };
    let stored = target.store.collection(&args.collection).ok().filter(|_| described);
    let finder = Finder::default();
    let work = |worker: &mut Worker<'_>, index: usize| {
        let outcome = embed(worker, &jobs[index], &finder, &present, stored.as_deref(), with_thumbnail[index]);
        progress.inc(1);
        outcome
    };
    embedder.each(jobs.len(), work, |range, outcomes| {
        let mut items = Vec::new();
        for (job, outcome) in jobs[range].iter().zip(outcomes) {
            match outcome {
                Outcome::New(item) => items.push(*item),
                Outcome::Unchanged => target.counts.unchanged += 1,
                Outcome::Skipped(reason) => target.skip(&progress, &job.path.display().to_string(), &reason),
                Outcome::Failed(error) => return Err(error),
            }
        }
        target.store(items)
    })?;
    progress.finish_and_clear();
    other_forms(&finder);
    target.finish(from)
}

#[expect(clippy::print_stderr, reason = "for the user of the command")]
fn other_forms(finder: &Finder) {
    if let (count, Some(first)) = finder.found() {
        eprintln!("found {count} files under another Unicode form of their name, the first: {}", first.display());
    }
}

fn embed(
    worker: &mut Worker<'_>,
    job: &Job,
    finder: &Finder,
    present: &HashMap<String, Option<String>>,
    described: Option<&dyn Collection>,
    thumbnail: bool,
) -> Outcome {
    let read = bulk::read(&job.path).or_else(|error| match (&error, finder.find(&job.path)) {
        (bulk::Error::Read(ErrorKind::NotFound), Some(path)) => bulk::read(&path),
        _ => Err(error),
    });
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => return Outcome::Skipped(error.to_string()),
    };
    let item = Item { source: Some(checksum::of_bytes(&bytes)), ..job.item.clone() };
    if present.get(&item.id) == Some(&item.source) {
        return described.map_or(Outcome::Unchanged, |collection| describe(collection, item));
    }
    match worker.embed(&bytes) {
        Ok((picture, vector)) => {
            let item = Item { fingerprint: Some(Box::new(Fingerprint::of(&picture))), ..item };
            let thumbnail = thumbnail.then(|| media::thumbnail(&picture));
            Outcome::New(Box::new(NewItem { item, vector, thumbnail, patches: None }))
        }
        Err(error) if error.is_of_file() => Outcome::Skipped(error.to_string()),
        Err(error) => Outcome::Failed(error.into()),
    }
}

/// What is stored of a picture that has not changed, under its labels and metadata of today.
fn describe(collection: &dyn Collection, item: Item) -> Outcome {
    match collection.get(&item.id) {
        Ok(stored) => {
            let item = Item { fingerprint: stored.item.fingerprint.clone(), ..item };
            if stored.item == item {
                return Outcome::Unchanged;
            }
            let thumbnail = collection.thumbnail(&item.id).ok();
            Outcome::New(Box::new(NewItem { item, vector: stored.vector, thumbnail, patches: None }))
        }
        Err(error) => Outcome::Failed(error.into()),
    }
}

/// Which pictures are among the first `per_class` of their class.
fn with_thumbnail(jobs: &[Job], per_class: Option<usize>) -> Vec<bool> {
    let mut seen: HashMap<Option<&String>, usize> = HashMap::new();
    let mut among_first = Vec::with_capacity(jobs.len());
    for job in jobs {
        let count = seen.entry(job.item.labels.first()).or_default();
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
        let job = |class: &str| Job { path: PathBuf::new(), item: Item { labels: vec![class.into()], ..Item::default() } };
        let jobs = [job("a"), job("b"), job("a"), job("a")];
        assert_eq!(with_thumbnail(&jobs, Some(2)), [true, true, true, false]);
        assert_eq!(with_thumbnail(&jobs, None), [true; 4]);
        assert_eq!(with_thumbnail(&jobs, Some(0)), [false; 4]);
    }
}
