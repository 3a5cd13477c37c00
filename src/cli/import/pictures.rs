//! Importing pictures: each is embedded, unless it is there already.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::OnceLock;

use dino_server::files::source::address::Address;
use dino_server::files::source::{Batch, Failure, Picture, Place, Source};
use dino_server::files::table::{Entry, Pictures};
use dino_server::index::{Collection, Item, MAX_STRING, ModelTag, NewItem, Spec, checksum};
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::{self, BATCH, Embedder, Worker, Workload};
use dino_vision::duplicates::Fingerprint;
use dino_vision::embedding::Pooling;
use dino_vision::media;
use dino_vision::model::SessionOptions;

use super::{Args, Target};
use crate::cli::images::{self, READERS};
use crate::cli::{open_model, progress};

/// A picture and the item that it becomes.
pub(super) struct Job {
    place: Place,
    item: Item,
}

/// What is to be imported.
pub(super) enum Jobs {
    /// Pictures of any source. Their labels are as old as they are.
    Source(Source),
    /// Rows of a table: their labels and metadata may have changed where the picture has not.
    Table(Vec<Job>, Vec<(String, String)>),
}

impl Jobs {
    pub(super) fn of_source(source: Source) -> Self {
        Self::Source(source)
    }

    pub(super) fn of_table(file: &Path, root: &Path, pictures: Pictures) -> Self {
        let job = |Entry { path, item, .. }| Job { place: Place::At(Address::File(root.join(path))), item };
        let skipped = |(row, reason)| (format!("row {row} of {}", file.display()), reason);
        Self::Table(pictures.entries.into_iter().map(job).collect(), pictures.skipped.into_iter().map(skipped).collect())
    }

    /// Number of pictures, as far as it is known.
    fn count(&self) -> usize {
        match self {
            Self::Source(source) => source.units.iter().filter_map(|unit| unit.count()).sum(),
            Self::Table(jobs, _) => jobs.len(),
        }
    }

    fn is_remote(&self) -> bool {
        matches!(self, Self::Source(Source { is_remote: true, .. }))
    }

    /// Hands out what was left out, by name and reason, and the jobs, some at a time; with the latter how many of them were not counted.
    fn each(self, mut take: impl FnMut(Vec<(String, String)>, Vec<Job>, usize) -> anyhow::Result<()>) -> anyhow::Result<()> {
        match self {
            Self::Table(mut jobs, skipped) => {
                take(skipped, Vec::new(), 0)?;
                while !jobs.is_empty() {
                    let rest = jobs.split_off(jobs.len().min(BATCH));
                    take(Vec::new(), std::mem::replace(&mut jobs, rest), 0)?;
                }
                Ok(())
            }
            Self::Source(source) => {
                let named = |failures: Vec<Failure>| failures.into_iter().map(|failure| (failure.path, failure.reason)).collect::<Vec<_>>();
                take(named(source.failures), Vec::new(), 0)?;
                let mut seen = HashSet::new();
                for unit in &source.units {
                    for Batch { pictures, failures } in unit.batches()? {
                        let (mut skipped, mut jobs) = (named(failures), Vec::new());
                        let uncounted = if unit.count().is_some() { 0 } else { pictures.len() };
                        for Picture { id, labels, place } in pictures {
                            let mut item = Item { id, labels, ..Item::default() };
                            match check(&mut item, &mut seen) {
                                Ok(()) => jobs.push(Job { place, item }),
                                Err(reason) => skipped.push((place.shown(), reason)),
                            }
                        }
                        take(skipped, jobs, uncounted)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Refuses an item that cannot be stored, and one whose id an earlier picture of this run has.
fn check(item: &mut Item, seen: &mut HashSet<String>) -> Result<(), String> {
    if item.id.len() > MAX_STRING {
        return Err(format!("its id is longer than {MAX_STRING} bytes"));
    }
    item.check().map_err(|error| error.to_string())?;
    if seen.insert(item.id.clone()) { Ok(()) } else { Err(format!("its id {:?} came before", item.id)) }
}

/// What became of one picture.
enum Outcome {
    New(Box<NewItem>),
    Unchanged,
    Skipped(String),
    /// Its host does not answer; another run may find it.
    Unreachable(String),
    /// The storage of the pictures fails: everything ends.
    Storage(String),
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

    if jobs.is_remote() {
        embedder = embedder.with_readers(READERS);
    }
    let progress = progress(jobs.count());
    let present = if args.force { HashMap::new() } else { std::mem::take(&mut target.present) };
    let stored = target.store.collection(&args.collection).ok().filter(|_| matches!(jobs, Jobs::Table(..)));
    let finder = Finder::default();
    let mut thumbnails = Thumbnails { per_class: args.thumbnails, seen: HashMap::new() };
    jobs.each(|skipped, jobs, uncounted| {
        progress.inc_length(uncounted as u64);
        for (what, reason) in &skipped {
            target.skip(&progress, what, reason);
        }
        let with_thumbnail: Vec<bool> = jobs.iter().map(|job| thumbnails.has(&job.item)).collect();
        // Why the storage of the pictures fails: nothing else is read from it then.
        let storage = OnceLock::<String>::new();
        let work = |worker: &mut Worker<'_>, index: usize| {
            if let Some(reason) = storage.get() {
                return Outcome::Storage(String::clone(reason));
            }
            let outcome = embed(worker, &jobs[index], &finder, &present, stored.as_deref(), with_thumbnail[index]);
            if let Outcome::Storage(reason) = &outcome {
                // The first reason stays.
                let _ = storage.set(reason.clone());
            }
            progress.inc(1);
            outcome
        };
        embedder.each(jobs.len(), work, |range, outcomes| {
            let mut items = Vec::new();
            for (job, outcome) in jobs[range].iter().zip(outcomes) {
                match outcome {
                    Outcome::New(item) => items.push(*item),
                    Outcome::Unchanged => target.counts.unchanged += 1,
                    Outcome::Skipped(reason) => target.skip(&progress, &job.place.shown(), &reason),
                    Outcome::Unreachable(reason) => {
                        target.counts.unreachable += 1;
                        target.skip(&progress, &job.place.shown(), &reason);
                    }
                    Outcome::Storage(reason) => return Err(anyhow::Error::msg(reason).context(job.place.shown())),
                    Outcome::Failed(error) => return Err(error),
                }
            }
            target.store(items)
        })
    })?;
    progress.finish_and_clear();
    images::other_forms(&finder);
    target.finish(from)
}

fn embed(
    worker: &mut Worker<'_>,
    job: &Job,
    finder: &Finder,
    present: &HashMap<String, Option<String>>,
    described: Option<&dyn Collection>,
    thumbnail: bool,
) -> Outcome {
    let bytes = match images::read(&job.place, finder) {
        Ok(bytes) => bytes,
        Err(error) if error.is_transient() => return Outcome::Unreachable(error.to_string()),
        Err(error) if error.is_of_file() => return Outcome::Skipped(error.to_string()),
        Err(bulk::Error::Storage(reason)) => return Outcome::Storage(reason),
        Err(error) => return Outcome::Failed(anyhow::Error::new(error).context(job.place.shown())),
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

/// Which pictures are among the first of their class.
struct Thumbnails {
    /// How many of a class; all where this is not said.
    per_class: Option<usize>,
    seen: HashMap<Option<String>, usize>,
}

impl Thumbnails {
    /// Whether the next picture keeps a thumbnail.
    fn has(&mut self, item: &Item) -> bool {
        let Some(most) = self.per_class else { return true };
        let count = self.seen.entry(item.labels.first().cloned()).or_default();
        *count += 1;
        *count <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbnails_are_counted_by_class() {
        let items = ["a", "b", "a", "a"].map(|class| Item { labels: vec![class.into()], ..Item::default() });
        let kept = |per_class| {
            let mut thumbnails = Thumbnails { per_class, seen: HashMap::new() };
            items.each_ref().map(|item| thumbnails.has(item))
        };
        assert_eq!(kept(Some(2)), [true, true, true, false]);
        assert_eq!(kept(None), [true; 4]);
        assert_eq!(kept(Some(0)), [false; 4]);
    }
}
