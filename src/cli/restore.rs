//! `dino-server restore`: a collection out of a snapshot.

use std::path::PathBuf;

use dino_server::index::{CollectionName, Error, OnExisting, snapshot};

use super::store::StoreArgs;

/// Make a collection of a snapshot, all of it or nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreArgs,
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
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = match &args.collection {
        Some(name) => name.clone(),
        None => snapshot::read_header(&args.from)?.name,
    };
    let store = args.store.open()?;
    if args.if_missing {
        match store.collection(&name) {
            Ok(_) => {
                println!("collection {name} is there already, nothing was restored");
                return Ok(());
            }
            Err(Error::NoCollection(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let existing = if args.replace { OnExisting::Replace } else { OnExisting::Refuse };
    let collection = match snapshot::restore(&*store, &args.from, Some(name), existing) {
        Err(error @ Error::Exists(_)) => {
            anyhow::bail!("{error}: keep it with --if-missing, replace it with --replace, or name another with --collection")
        }
        result => result?,
    };
    println!("restored {} items into collection {}", collection.info()?.count, collection.name());
    Ok(())
}
