//! `dino-server snapshot`: a collection as one file.

use std::path::PathBuf;

use dino_server::index::{CollectionName, Options, Store, snapshot};

/// Write a collection, with its thumbnails, to one file.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Collection to write.
    #[arg(long, default_value = "default", value_name = "NAME")]
    collection: CollectionName,
    /// Folder of the store.
    #[arg(long, env = "DINO_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// File to write; one that is there is replaced once the new one is complete.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(args.data_dir.is_dir(), "{} is no folder", args.data_dir.display());
    // No index is needed to write down what is stored.
    let store = Store::open(&args.data_dir, Options { exact_below: usize::MAX, ..Options::default() })?;
    let collection = store.collection(&args.collection)?;
    snapshot::save(&collection, &args.out)?;
    println!("wrote {} items of collection {} to {}", collection.len(), args.collection, args.out.display());
    Ok(())
}
