//! Where the collections of a test are: a folder, a database, or several.

use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::{harness::Server, postgres};

pub(crate) struct Place {
    outside: TempDir,
    data: String,
    /// The databases, where those are the store.
    url: Option<String>,
    count: usize,
}

impl Place {
    pub(crate) fn folder_of_its_own() -> Self {
        Self::of(0)
    }

    pub(crate) fn database_of_its_own() -> Self {
        Self::of(1)
    }

    /// Three databases that hold the collections together.
    pub(crate) fn databases_of_their_own() -> Self {
        Self::of(3)
    }

    /// An empty one of the same kind.
    pub(crate) fn another(&self) -> Self {
        Self::of(self.count)
    }

    /// So many databases; a folder without any.
    fn of(count: usize) -> Self {
        let urls: Vec<_> = (0..count).map(|_| postgres::database()).collect();
        Self { count, ..Self::new((count > 0).then(|| urls.join(","))) }
    }

    pub(crate) fn new(url: Option<String>) -> Self {
        let outside = tempfile::tempdir().unwrap();
        let data = outside.path().join("data").to_str().unwrap().to_owned();
        Self { outside, data, count: usize::from(url.is_some()), url }
    }

    /// Flags of the server; with a database also the folder for temporary files of snapshots.
    pub(crate) fn flags(&self) -> Vec<&str> {
        let index = self.url.iter().flat_map(|url| ["--index", url]);
        index.chain(["--data-dir", &self.data]).collect()
    }

    /// What a verb is told that takes only one of them.
    pub(crate) fn store(&self) -> [&str; 2] {
        self.url.as_ref().map_or(["--data-dir", &self.data], |url| ["--index", url])
    }

    /// A server with the collection `c`.
    pub(crate) fn server(&self, flags: &[&str]) -> Server {
        let server = Server::start(&[&self.flags()[..], flags].concat());
        let made = server.put("/collections/c", &json!({}));
        assert!([200, 201].contains(&made.status), "{}", made.text());
        server
    }

    /// The data folder; it lies in one that is the test's too.
    pub(crate) fn folder(&self) -> PathBuf {
        self.data.clone().into()
    }

    /// A file beside it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.outside.path().join(name)
    }

    /// Whether a body is stored in one step.
    pub(crate) fn is_one_store(&self) -> bool {
        self.count <= 1
    }

    /// What stays in the data folder.
    pub(crate) fn files(&self) -> &[&str] {
        if self.url.is_some() { &[] } else { &[".reserve", "store.redb"] }
    }
}

/// Runs each test on every store: what they do is the same.
macro_rules! on_every_store {
    ($($name:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $name() { super::$name(&super::Place::folder_of_its_own()); })+
        }
        mod postgres {
            $(#[test] fn $name() { super::$name(&super::Place::database_of_its_own()); })+
        }
        mod sharded {
            $(#[test] fn $name() { super::$name(&super::Place::databases_of_their_own()); })+
        }
    };
}
pub(crate) use on_every_store;
