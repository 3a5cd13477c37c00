//! `dino-server reembed`: a collection for another model.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use dino_hub::Location;
use dino_server::index::snapshot::{self, Header};
use dino_server::index::{CollectionName, IndexUrl, ModelTag, NewItem, OnExisting, Spec, StoreOptions, checksum};
use dino_vision::bulk::{self, Embedder, Worker, Workload, names, tree};
use dino_vision::embedding::Pooling;
use dino_vision::model::{Device, Precision, SessionOptions};

use super::store::StoreArgs;
use super::{open_model, progress};

/// Embed the pictures of a collection again, with another model. Ids, labels and metadata stay.
///
/// Between two snapshots (`--from`, `--out`) no store is touched: the server goes on with the old collection until
/// `POST /collections/{name}/restore?replace=true` swaps in the new one, in one step. With `--data-dir` the
/// collection of a store that no server has open is replaced; with `--index` one that servers may go on to read, while what they
/// write after the start of this goes with the old one.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["from", "data_dir", "index"])))]
pub(crate) struct Args {
    /// Snapshot of the old collection.
    #[arg(long, value_name = "FILE", requires = "out")]
    from: Option<PathBuf>,
    /// Snapshot to write.
    #[arg(long, value_name = "FILE", requires = "from")]
    out: Option<PathBuf>,
    /// Folder of the store.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Database of the collections in place of a folder, as for `serve`; without the password, which comes from PGPASSWORD or
    /// a file that PGPASSFILE names.
    #[arg(long, value_name = "URL")]
    index: Option<IndexUrl>,
    /// Collection of the store.
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: CollectionName,
    /// Model to embed with: a folder, or an ONNX file that was exported elsewhere; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a
    /// model hub.
    #[arg(long, value_name = "PATH|HF", value_parser = dino_program::flags::location())]
    model: Location,
    /// Folder that the pictures were imported from, where the collection does not hold the originals (which it does where
    /// the server ran with --store-images original).
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Embed what has only a thumbnail from that; its vectors are worse than those of the picture.
    #[arg(long)]
    from_thumbnails: bool,
    /// Leave out items without a usable picture. Without this flag the first of them ends the command.
    #[arg(long)]
    drop_missing: bool,
    /// Precision to embed with.
    #[arg(long, env = "DINO_PRECISION", default_value = "f32")]
    precision: Precision,
    /// Where the model runs: auto (the fastest that is there), cpu, cuda[:N], tensorrt[:N], openvino[:CPU|GPU|NPU] or
    /// plugin:PATH[:N].
    #[arg(long, env = "DINO_DEVICE", default_value = "auto")]
    device: Device,
    /// Use a device although it does not compute what ONNX Runtime's CPU computes.
    #[arg(long, env = "DINO_TRUST_DEVICE")]
    trust_device: bool,
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let (Some(from), Some(out)) = (&args.from, &args.out) {
        let (header, items) = snapshot::read(from)?;
        let (header, items) = reembed(args, header, items)?;
        let count = items.len();
        snapshot::save_items(&header, items, out)?;
        println!("wrote {count} items of collection {} to {}", header.name, out.display());
        return Ok(());
    }
    let store = StoreArgs::from(StoreOptions::new(args.data_dir.clone(), args.index.clone())).open_existing()?;
    let old = store.scratch()?;
    for item in snapshot::save(&*store.collection(&args.collection)?, old.path())? {
        anyhow::ensure!(
            args.drop_missing,
            "item {:?}: {}; nothing was changed (--drop-missing leaves such items out)",
            item.id,
            item.reason
        );
        super::skipped(&format!("item {:?}", item.id), &item.reason);
    }
    let (header, items) = snapshot::read(old.path())?;
    let (header, items) = reembed(args, header, items)?;
    let count = items.len();
    let collection = store.create_with(&header.name, header.spec, &mut items.into_iter().map(Ok), OnExisting::Replace)?;
    println!("collection {}: {count} items embedded again", collection.name());
    Ok(())
}

/// Where an item's picture comes from.
enum Picture<'a> {
    Stored(&'a [u8]),
    File(&'a Path),
}

/// Why an item cannot be embedded again.
struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[expect(clippy::print_stderr, reason = "for the user of the command")]
fn reembed(args: &Args, header: Header, mut items: Vec<NewItem>) -> anyhow::Result<(Header, Vec<NewItem>)> {
    anyhow::ensure!(
        header.spec.patches().is_none(),
        "collection {} holds patches: make another one (PUT /collections/{{name}} with \"kind\": \"patches\") and send its pictures again",
        header.name
    );
    let model = open_model(&args.model, args.precision)?;
    let files: HashMap<String, PathBuf> = match &args.images {
        Some(folder) => files(tree::list(folder)?.entries),
        None => HashMap::new(),
    };
    let session =
        SessionOptions { device: args.device, precision: args.precision, trust_device: args.trust_device, ..SessionOptions::default() };
    let mut embedder = Embedder::open(&model, Pooling::Cls, &session, Workload::default())?;
    let spec = Spec::pictures(
        embedder.dim(),
        ModelTag { fingerprint: model.fingerprint(Pooling::Cls), precision: Some(model.precision(args.precision).to_string()) },
    );
    let progress = progress(items.len());
    let work = |worker: &mut Worker<'_>, index: usize| {
        let vector = picture(&items[index], &files, args.from_thumbnails).map(|picture| embed(worker, &picture));
        progress.inc(1);
        vector
    };
    let mut vectors = Vec::with_capacity(items.len());
    embedder.each(items.len(), work, |range, found| -> anyhow::Result<()> {
        for (index, found) in range.zip(found) {
            let found = match found {
                Ok(Err(error)) if !error.is_of_file() => return Err(error.into()),
                Ok(found) => found.map_err(|error| Missing(error.to_string())),
                Err(missing) => Err(missing),
            };
            if let Err(reason) = &found {
                let id = &items[index].item.id;
                anyhow::ensure!(args.drop_missing, "item {id:?}: {reason}; nothing was changed (--drop-missing leaves such items out)");
                progress.suspend(|| eprintln!("left out {id:?}: {reason}"));
            }
            vectors.push(found.ok());
        }
        Ok(())
    })?;
    progress.finish_and_clear();
    for (item, vector) in items.iter_mut().zip(&mut vectors) {
        item.vector = vector.take().unwrap_or_default();
    }
    items.retain(|item| !item.vector.is_empty());
    anyhow::ensure!(!items.is_empty(), "no item of collection {} has a picture that can be embedded", header.name);
    Ok((Header { spec, ..header }, items))
}

/// Files by the ids that `import` gives them, and by their names as they are, which are ids that others gave.
fn files(entries: Vec<tree::Entry>) -> HashMap<String, PathBuf> {
    let names: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
    let ids: Vec<String> = names::ids(&names, dino_server::index::MAX_STRING).into_iter().map(Cow::into_owned).collect();
    let composed: Vec<_> = ids.into_iter().zip(&entries).map(|(id, entry)| (id, entry.path.clone())).collect();
    entries.into_iter().map(|entry| (entry.id, entry.path)).chain(composed).collect()
}

/// The file of that id if there is one, else what is stored, if it is the picture itself.
fn picture<'a>(new: &'a NewItem, files: &'a HashMap<String, PathBuf>, from_thumbnails: bool) -> Result<Picture<'a>, Missing> {
    if let Some(path) = files.get(&new.item.id) {
        return Ok(Picture::File(path));
    }
    let Some(stored) = &new.thumbnail else {
        return Err(Missing("its picture is not stored, and no file of --images has this id".into()));
    };
    let is_original = new.item.source.as_ref().is_some_and(|source| *source == checksum::of_bytes(stored));
    if is_original || from_thumbnails {
        return Ok(Picture::Stored(stored));
    }
    Err(Missing("only a thumbnail of its picture is stored, and no file of --images has this id (or allow --from-thumbnails)".into()))
}

fn embed(worker: &mut Worker<'_>, picture: &Picture<'_>) -> Result<Vec<f32>, bulk::Error> {
    let bytes;
    let bytes = match picture {
        Picture::Stored(bytes) => bytes,
        Picture::File(path) => {
            bytes = bulk::read(path)?;
            bytes.as_slice()
        }
    };
    Ok(worker.embed(bytes)?.1)
}
