//! Flags of the collections: where they are kept, and how they are indexed.

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::sync::oneshot;

use super::{EmbeddedStore, Error, IndexOptions, IndexUrl, Store, VectorFormat};
#[cfg(feature = "postgres")]
use super::{PostgresOptions, postgres};

/// Default of `--index-connections`. PostgreSQL's own default is to serve 100, from all servers together.
const CONNECTIONS: u32 = 8;
/// Longest that one statement of a command may take. Whole collections are read and written without a limit.
#[cfg(feature = "postgres")]
const COMMAND_TIMEOUT: Duration = Duration::from_mins(10);

/// Flags that all programs share which open collections; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct StoreOptions {
    /// Folder of the collections. Without it (or --index) `serve` has none, and /classify has nothing to vote with. With --index it
    /// holds temporary files of snapshots, and nothing that lasts.
    #[arg(long, env = "DINO_DATA_DIR", value_name = "DIR", help_heading = "Collections")]
    pub data_dir: Option<PathBuf>,
    /// Database of the collections, in place of a folder: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full, with the
    /// extension pgvector. Servers that name the same one share its collections. Several, with commas between them, hold the
    /// collections together: each item is in one of them, and all are asked. Meant for the environment: every user who can list
    /// the processes of this machine can read a flag.
    #[arg(long, env = "DINO_INDEX", hide_env_values = true, value_name = "URL", help_heading = "Collections")]
    pub index: Option<IndexUrl>,
    /// Collections with fewer items are searched exactly; larger ones get an approximate index.
    #[arg(long, env = "DINO_EXACT_BELOW", default_value_t = IndexOptions::EXACT_BELOW, value_name = "N", help_heading = "Collections")]
    pub exact_below: usize,
    /// How vectors of collections are held in memory: f32, or int8, which takes a quarter and looks the nearest up on the disk
    /// (then every search is a scan, and no index is built).
    #[arg(long, env = "DINO_VECTORS", default_value_t = VectorFormat::F32, value_name = "KIND", help_heading = "Collections")]
    pub vectors: VectorFormat,
}

impl StoreOptions {
    /// The collections of a folder or a database, with the defaults of the other flags.
    pub fn new(data_dir: Option<PathBuf>, index: Option<IndexUrl>) -> Self {
        Self { data_dir, index, exact_below: IndexOptions::EXACT_BELOW, vectors: VectorFormat::F32 }
    }

    /// The same without approximate indexes, for a command that searches nothing.
    #[must_use]
    pub fn without_index(&self) -> Self {
        Self { exact_below: usize::MAX, ..self.clone() }
    }

    /// Opens the collections for a command. A folder that does not exist is made. Indexes are built when the command asks for it, and
    /// not by a thread beside it.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] without a folder and a database, and those of [`EmbeddedStore::open`] and `PostgresStore::open`.
    pub fn open(&self) -> Result<Box<dyn Store>, Error> {
        let index = IndexOptions { build_in_background: false, ..self.index_options(true) };
        if let Some(url) = &self.index {
            url.check()?;
            #[cfg(feature = "postgres")]
            return postgres::open(url, self.postgres_options(index, 1, COMMAND_TIMEOUT));
        }
        let folder = self.data_dir.as_ref().ok_or_else(|| Error::InvalidParameter("give --data-dir DIR or --index URL".to_owned()))?;
        Ok(Box::new(EmbeddedStore::open(folder, index)?))
    }

    fn index_options(&self, progress: bool) -> IndexOptions {
        IndexOptions { exact_below: self.exact_below, progress, vectors: self.vectors, ..IndexOptions::default() }
    }

    #[cfg(feature = "postgres")]
    fn postgres_options(&self, index: IndexOptions, connections: u32, timeout: Duration) -> PostgresOptions {
        PostgresOptions { index, connections, timeout, scratch: self.data_dir.clone().unwrap_or_else(std::env::temp_dir) }
    }
}

/// Flags of the collections of a server.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// Where they are kept.
    #[command(flatten)]
    pub store: StoreOptions,
    /// Most connections to the database of the collections; to each of several.
    #[arg(long, env = "DINO_INDEX_CONNECTIONS", default_value_t = CONNECTIONS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Collections")]
    pub index_connections: u32,
}

/// Collections that are being read into memory while the server already answers.
pub struct Opening(oneshot::Receiver<Result<(), Error>>);

impl Opening {
    /// Waits until all of them are loaded.
    ///
    /// # Errors
    /// Those of [`EmbeddedStore::open`].
    pub async fn finished(self) -> Result<(), Error> {
        // Where the thread panicked, the log has the panic.
        self.0.await.unwrap_or_else(|_| Err(Error::Io(std::io::Error::other("the thread that loads the collections ended"))))
    }
}

impl Options {
    /// Begins to open the collections, if flags say where they are. `timeout` is that of one statement of a database.
    ///
    /// # Errors
    /// What can be told at once: a folder in use, a URL that cannot be right.
    #[cfg_attr(not(feature = "postgres"), expect(unused_variables, reason = "only databases have statements"))]
    pub fn open(&self, timeout: Duration) -> Result<(Option<Arc<dyn Store>>, Opening), Error> {
        let (done, opening) = oneshot::channel();
        let opening = Opening(opening);
        let index = self.store.index_options(stderr().is_terminal());
        if let Some(url) = &self.store.index {
            url.check()?;
            #[cfg(feature = "postgres")]
            {
                let options = self.store.postgres_options(index, self.index_connections, timeout);
                let store = postgres::open_when_reachable(url, options)?;
                let _ = done.send(Ok(()));
                return Ok((Some(store), opening));
            }
        }
        let Some(folder) = &self.store.data_dir else {
            let _ = done.send(Ok(()));
            return Ok((None, opening));
        };
        let store = EmbeddedStore::open_in_background(folder, index, |outcome| drop(done.send(outcome)))?;
        Ok((Some(store), opening))
    }
}
