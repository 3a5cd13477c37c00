//! Where the verbs that work on collections find them.

use std::path::PathBuf;
use std::time::Duration;

use dino_server::index::{EmbeddedStore, Error, IndexUrl, Options, PostgresOptions, PostgresStore, Store, Vectors};

/// Longest that one statement of a verb may take; whole collections are read and written without a limit.
const PATIENCE: Duration = Duration::from_mins(10);

/// The place of the collections.
#[derive(clap::Args, Clone)]
pub(crate) struct StoreArgs {
    /// Folder of the store. With --index it holds snapshots on their way.
    #[arg(long, env = "DINO_DATA_DIR", value_name = "DIR", required_unless_present = "index")]
    data_dir: Option<PathBuf>,
    /// Database of the collections in place of a folder, as for `serve`. Servers may have it open meanwhile. Meant for the
    /// environment: every user who can list the processes of this machine can read a flag.
    #[arg(long, env = "DINO_INDEX", hide_env_values = true, value_name = "URL")]
    index: Option<IndexUrl>,
    /// Build an approximate index where there are this many items; below, searches are exact.
    #[arg(long, env = "DINO_EXACT_BELOW", default_value_t = Options::EXACT_BELOW, value_name = "N")]
    exact_below: usize,
    /// How vectors are held in memory meanwhile, as for `serve`: f32 or int8 (then no index is built).
    #[arg(long, env = "DINO_VECTORS", default_value_t = Vectors::F32, value_name = "KIND")]
    vectors: Vectors,
}

impl StoreArgs {
    /// The place that other flags name.
    pub(crate) fn new(data_dir: Option<PathBuf>, index: Option<IndexUrl>) -> Self {
        Self { data_dir, index, exact_below: Options::EXACT_BELOW, vectors: Vectors::F32 }
    }

    /// The same without any approximate index: enough to write down what is stored.
    pub(crate) fn without_index(&self) -> Self {
        Self { exact_below: usize::MAX, ..self.clone() }
    }

    /// Opens it; a folder that does not exist is made. Indexes are built when a verb asks for it, not beside it.
    pub(crate) fn open(&self) -> Result<Box<dyn Store>, Error> {
        let index = Options { exact_below: self.exact_below, build_in_background: false, progress: true, vectors: self.vectors };
        if let Some(url) = &self.index {
            let scratch = self.data_dir.clone().unwrap_or_else(std::env::temp_dir);
            let options = PostgresOptions { index, connections: 1, patience: PATIENCE, scratch };
            return Ok(Box::new(PostgresStore::open(url, options)?));
        }
        let folder = self.data_dir.as_ref().ok_or_else(|| Error::InvalidParameter("give --data-dir DIR or --index URL".to_owned()))?;
        Ok(Box::new(EmbeddedStore::open(folder, index)?))
    }

    /// Opens one that is there already.
    pub(crate) fn open_existing(&self) -> anyhow::Result<Box<dyn Store>> {
        if let (None, Some(folder)) = (&self.index, &self.data_dir) {
            anyhow::ensure!(folder.is_dir(), "{} is no folder", folder.display());
        }
        Ok(self.open()?)
    }
}
