//! `dino-server restore`: a collection out of a snapshot.

use std::path::PathBuf;

use dino_server::index::{CollectionName, Error, OnExisting, Options, Store, snapshot};

/// Make a collection of a snapshot, all of it or nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the store, made where it does not exist.
    #[arg(long, env = "DINO_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Snapshot to read.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Name of the collection; by default the one that it had.
    #[arg(long, value_name = "NAME")]
    collection: Option<CollectionName>,
    /// Do nothing where the collection exists.
    #[arg(long, conflicts_with = "replace")]
    if_missing: bool,
    /// Delete the collection that is there, in the same step.
    #[arg(long)]
    replace: bool,
    /// Build an approximate index where there are this many items; below, searches are exact.
    #[arg(long, env = "DINO_EXACT_BELOW", default_value_t = Options::EXACT_BELOW, value_name = "N")]
    exact_below: usize,
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = match &args.collection {
        Some(name) => name.clone(),
        None => snapshot::read_header(&args.from)?.name,
    };
    let options = Options { exact_below: args.exact_below, build_in_background: false, progress: true };
    let store = Store::open(&args.data_dir, options)?;
    if args.if_missing && store.collection(&name).is_ok() {
        println!("collection {name} is there already, nothing was restored");
        return Ok(());
    }
    let existing = if args.replace { OnExisting::Replace } else { OnExisting::Refuse };
    let collection = match snapshot::restore(&store, &args.from, Some(name), existing) {
        Err(error @ Error::Exists(_)) => {
            anyhow::bail!("{error}: keep it with --if-missing, replace it with --replace, or name another with --collection")
        }
        result => result?,
    };
    println!("restored {} items into collection {}", collection.len(), collection.name());
    Ok(())
}
