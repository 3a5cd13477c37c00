//! Flags of the commands that work on collections.

use dino_server::index::{Error, Store, StoreOptions};

/// Where the collections are: a folder or a database has to be named.
#[derive(clap::Args, Clone)]
#[command(mut_arg("data_dir", |arg| arg.required_unless_present("index")))]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    options: StoreOptions,
}

impl From<StoreOptions> for StoreArgs {
    fn from(options: StoreOptions) -> Self {
        Self { options }
    }
}

impl StoreArgs {
    /// The same without approximate indexes, for a command that searches nothing.
    pub(crate) fn without_index(&self) -> Self {
        self.options.without_index().into()
    }

    /// Opens the collections; a folder that does not exist is made.
    pub(crate) fn open(&self) -> Result<Box<dyn Store>, Error> {
        self.options.open()
    }

    /// Opens collections of a folder that exists, or of a database.
    pub(crate) fn open_existing(&self) -> anyhow::Result<Box<dyn Store>> {
        if let (None, Some(folder)) = (&self.options.index, &self.options.data_dir) {
            anyhow::ensure!(folder.is_dir(), "{} is no folder", folder.display());
        }
        Ok(self.open()?)
    }
}
