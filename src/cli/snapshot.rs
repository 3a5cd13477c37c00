//! `dino-server snapshot`: a collection as one file.

use std::path::PathBuf;

use dino_server::index::{CollectionName, snapshot};

use super::store::StoreArgs;

/// Write a collection, with its thumbnails, to one file.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Collection to write.
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: CollectionName,
    #[command(flatten)]
    store: StoreArgs,
    /// File to write; one that is there is replaced once the new one is complete.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let store = args.store.without_index().open_existing()?;
    let collection = store.collection(&args.collection)?;
    for item in snapshot::save(&*collection, &args.out)? {
        super::skipped(&format!("item {:?}", item.id), &item.reason);
    }
    println!("wrote {} items of collection {} to {}", snapshot::verify(&args.out)?, args.collection, args.out.display());
    Ok(())
}
