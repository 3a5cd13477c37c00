//! Where the collections of a server are: a folder, a database, or nowhere.

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::sync::oneshot;

use super::{EmbeddedStore, Error, IndexUrl, Options, PostgresOptions, PostgresStore, Store, Vectors};

/// Flags of the collections; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Location {
    /// Folder of the collections. Without it (or --index) there are none, and /classify has nothing to vote with. With --index it
    /// holds snapshots on their way, and nothing that lasts.
    #[arg(long, env = "DINO_DATA_DIR", value_name = "DIR", help_heading = "Collections")]
    pub data_dir: Option<PathBuf>,
    /// Database of the collections, in place of a folder: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full, with the
    /// extension pgvector. Servers that name the same one share its collections. Meant for the environment: every user who
    /// can list the processes of this machine can read a flag.
    #[arg(long, env = "DINO_INDEX", hide_env_values = true, value_name = "URL", help_heading = "Collections")]
    pub index: Option<IndexUrl>,
    /// Most connections to the database of the collections.
    #[arg(long, env = "DINO_INDEX_CONNECTIONS", default_value_t = PostgresOptions::CONNECTIONS, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Collections")]
    pub index_connections: u32,
    /// Collections with fewer items are searched exactly; larger ones get an approximate index.
    #[arg(long, env = "DINO_EXACT_BELOW", default_value_t = Options::EXACT_BELOW, value_name = "N", help_heading = "Collections")]
    pub exact_below: usize,
    /// How vectors of collections are held in memory: f32, or int8, which takes a quarter and looks the nearest up on the disk
    /// (then every search is a scan, and no index is built).
    #[arg(long, env = "DINO_VECTORS", default_value = "f32", value_name = "KIND", help_heading = "Collections")]
    pub vectors: Vectors,
}

/// The collections as they are read into memory while the server answers already.
pub struct Opening(oneshot::Receiver<Result<(), Error>>);

impl Opening {
    /// Waits until all of them are loaded.
    ///
    /// # Errors
    /// Those of [`EmbeddedStore::open`].
    pub async fn finished(self) -> Result<(), Error> {
        // The panic of a thread that answers nothing is in the log.
        self.0.await.unwrap_or_else(|_| Err(Error::Io(std::io::Error::other("the thread that loads the collections ended"))))
    }
}

impl Location {
    /// Begins to open the collections, if there is a place for them. `timeout` is that of one statement of a database.
    ///
    /// # Errors
    /// What can be told at once: a folder in use, a URL that cannot be right.
    pub fn open(&self, timeout: Duration) -> Result<(Option<Arc<dyn Store>>, Opening), Error> {
        let (done, opening) = oneshot::channel();
        let opening = Opening(opening);
        let options =
            Options { exact_below: self.exact_below, progress: stderr().is_terminal(), vectors: self.vectors, ..Options::default() };
        if let Some(url) = &self.index {
            let options = PostgresOptions {
                index: options,
                connections: self.index_connections,
                patience: timeout,
                scratch: self.data_dir.clone().unwrap_or_else(std::env::temp_dir),
            };
            let store = PostgresStore::open_when_reachable(url, options)?;
            let _ = done.send(Ok(()));
            return Ok((Some(Arc::new(store)), opening));
        }
        let Some(folder) = &self.data_dir else {
            let _ = done.send(Ok(()));
            return Ok((None, opening));
        };
        let store = EmbeddedStore::open_in_background(folder, options, |outcome| drop(done.send(outcome)))?;
        Ok((Some(store), opening))
    }
}
