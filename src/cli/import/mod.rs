//! `dino-server import`: pictures or a table become a collection.

mod pictures;
#[cfg(feature = "parquet")]
mod vectors;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::builder::{PathBufValueParser, TypedValueParser as _};
use dino_hub::Location;
use dino_server::files::shard::Shard;
use dino_server::files::source;
use dino_server::files::table::{self, Columns, Table};
use dino_server::index::{Collection, CollectionName, Error, MAX_STRING, NewItem, Spec, Store};
use dino_vision::model::{Device, Precision};
use indicatif::ProgressBar;

use super::images;
use super::store::StoreArgs;
use pictures::Jobs;

/// Store pictures, or vectors that `embed` made of them, as a labelled collection. Run it again to go on after an
/// interruption, or to take up what has changed.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["images", "table"])))]
pub(crate) struct Args {
    /// Where the pictures are: a folder, whose folders directly below are the classes; or, as for `embed`, tar files or a pattern of them, Parquet
    /// and Arrow files, a manifest, or a list, also on stdin (-). In folders every file is tried, whatever its name. With --table: the folder
    /// where its paths begin.
    #[arg(long, value_name = "WHERE")]
    images: Option<PathBuf>,
    /// Table (.csv, .tsv, either of them with .gz, or .parquet, with column names) of pictures, or a .parquet that `embed` wrote, whose vectors are taken as they are.
    /// Paths begin at the table's own folder unless --images is given. Columns without a meaning become metadata.
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(table::supported))]
    table: Option<PathBuf>,
    /// Column of the paths [default: path, `file_name`, filename, file or image].
    #[arg(long, value_name = "NAME", requires = "table")]
    path_column: Option<String>,
    /// Column of the pictures in Parquet and Arrow files that --images names: of bytes, or Hugging Face's struct of bytes and path [default:
    /// image, else the only such column].
    #[arg(long, value_name = "NAME", conflicts_with = "table")]
    image_column: Option<String>,
    /// Column of the items' ids [default: id, else the path, or the file and the number of the row].
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,
    /// Column of the labels, of strings or of lists of them [default: label or labels].
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Separator of several labels in one cell, such as `;`. Without it a cell is one label.
    #[arg(long, value_name = "TEXT", requires = "table", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    label_separator: Option<String>,
    /// Take only part I (from 0) of N of what --images names, as `embed` divides it: several machines fill one PostgreSQL.
    #[arg(long, default_value_t = Shard::WHOLE, value_name = "I/N|auto", value_parser = Shard::of_flag, conflicts_with = "table")]
    shard: Shard,
    /// Embed the pictures of a table that has vectors.
    #[arg(long, requires = "table")]
    embed: bool,
    /// Collection to fill; made where it does not exist.
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: CollectionName,
    #[command(flatten)]
    store: StoreArgs,
    /// A model folder, or an ONNX file that was exported elsewhere; `hf://OWNER/NAME[@REVISION][/FILE]` names one on a model hub. For a
    /// table of vectors it may be left out; where it is given, they must be of this model.
    #[arg(long, value_name = "PATH|HF", required_unless_present = "table", value_parser = dino_program::flags::location())]
    model: Option<Location>,
    /// Precision to embed with; collections of one model mix them.
    #[arg(long, env = "DINO_PRECISION", default_value = "f32")]
    precision: Precision,
    /// Where the model runs: auto (the fastest that is there), cpu, cuda[:N], tensorrt[:N], openvino[:CPU|GPU|NPU] or
    /// plugin:PATH[:N].
    #[arg(long, env = "DINO_DEVICE", default_value = "auto")]
    device: Device,
    /// Use a device although it does not compute what ONNX Runtime's CPU computes.
    #[arg(long, env = "DINO_TRUST_DEVICE")]
    trust_device: bool,
    /// Pictures per class that keep a thumbnail; all of them if this is left out.
    #[arg(long, value_name = "N")]
    thumbnails: Option<usize>,
    /// Store again what is there with the same content.
    #[arg(long)]
    force: bool,
    /// Copies of the model that run side by side [default: one per core on a CPU, else 1].
    #[arg(long, env = "DINO_SESSIONS", alias = "workers", value_name = "N", value_parser = dino_server::flags::positive)]
    sessions: Option<usize>,
    /// Most pictures in one run of the model [default: 1 on a CPU, else 64].
    #[arg(long, value_name = "N", value_parser = dino_server::flags::positive)]
    batch: Option<usize>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let columns = Columns {
        path: args.path_column.clone(),
        id: args.id_column.clone(),
        label: args.label_column.clone(),
        separator: args.label_separator.clone(),
    };
    match (&args.table, &args.images) {
        (Some(file), images) => match table::open(file, &columns, args.embed)? {
            #[cfg(feature = "parquet")]
            Table::Vectors(found) => vectors::run(args, file, *found),
            Table::Pictures(found) => {
                ignored(&found.ignored);
                let root = images.as_deref().or(file.parent()).unwrap_or(Path::new(""));
                pictures::run(args, file, Jobs::of_table(file, root, found))
            }
        },
        (None, Some(images)) => {
            let columns =
                source::Columns { image: args.image_column.clone(), id: args.id_column.clone(), label: args.label_column.clone() };
            let options = source::Options { shard: args.shard, columns, composed: Some(MAX_STRING), counts_repeated: false };
            pictures::run(args, images, Jobs::of_source(images::open(images, &options)?))
        }
        (None, None) => anyhow::bail!("give --images DIR or --table FILE"),
    }
}

#[expect(clippy::print_stderr, reason = "for the user of the command")]
fn ignored(columns: &[String]) {
    if !columns.is_empty() {
        eprintln!("left out columns that are neither strings nor numbers, or that cannot be read: {}", columns.join(", "));
    }
}

/// The collection that is filled.
struct Target<'a> {
    store: Box<dyn Store>,
    name: &'a CollectionName,
    spec: Spec,
    /// Id and source of what is there already.
    present: HashMap<String, Option<String>>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    stored: usize,
    unchanged: usize,
    skipped: usize,
    /// Those of them that another run may find.
    unreachable: usize,
}

impl<'a> Target<'a> {
    fn open(args: &'a Args, spec: Spec) -> anyhow::Result<Self> {
        let store = args.store.open()?;
        let present = match store.collection(&args.collection) {
            Ok(collection) => {
                collection.check_model(&spec.model.fingerprint)?;
                collection.sources()?
            }
            Err(Error::NoCollection(_)) => HashMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { store, name: &args.collection, spec, present, counts: Counts::default() })
    }

    fn skip(&mut self, progress: &ProgressBar, what: &str, reason: &str) {
        self.counts.skipped += 1;
        progress.suspend(|| super::skipped(what, reason));
    }

    /// Stores items; the collection appears with the first of them.
    fn store(&mut self, items: Vec<NewItem>) -> anyhow::Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let (count, before) = (items.len(), self.counts.stored);
        let stored = self.store.create(self.name, self.spec.clone()).and_then(|(collection, _)| collection.upsert(items));
        stored.with_context(|| {
            format!("cannot store {count} items: {before} before them are stored, and stay; make room if it is that, and run this again to go on")
        })?;
        self.counts.stored += count;
        Ok(())
    }

    #[expect(clippy::print_stdout, reason = "the result of the command")]
    fn finish(self, from: &Path) -> anyhow::Result<()> {
        let Counts { stored, unchanged, skipped, unreachable } = self.counts;
        anyhow::ensure!(stored + unchanged > 0, "no readable picture in {} ({skipped} skipped)", images::shown(from));
        let collection: Arc<dyn Collection> = self.store.collection(self.name)?;
        collection.build_if_due()?;
        println!(
            "collection {}: {stored} stored, {unchanged} unchanged, {skipped} skipped; {} items in all",
            self.name,
            collection.info()?.count
        );
        anyhow::ensure!(unreachable == 0, "{unreachable} pictures are on hosts that do not answer: run this again to take them up");
        Ok(())
    }
}
