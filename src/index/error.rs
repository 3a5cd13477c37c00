//! What can go wrong with collections, one variant per thing that a caller can act on.

use std::path::{Path, PathBuf};

/// An error of the store, of a collection or of a snapshot file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A collection's name is not allowed; a client's mistake.
    #[error("the collection name {0:?} is not allowed: use 1 to 128 of A-Z a-z 0-9 _ . - and start with a letter or digit")]
    InvalidName(String),
    /// An item's id, labels or metadata break a limit; a client's mistake.
    #[error("item {id:?}: {reason}")]
    InvalidItem {
        /// Id of the item, as it was sent.
        id: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// A vector cannot be stored or searched with; a client's mistake.
    #[error("{owner}: {reason}")]
    InvalidVector {
        /// `item "…"` or `query`.
        owner: String,
        /// What is wrong with the vector.
        reason: String,
    },
    /// A vector has another number of dimensions than the collection.
    #[error("{owner}: the vector has {found} numbers, the collection takes {wanted}")]
    Dimension {
        /// `item "…"` or `query`.
        owner: String,
        /// Length of the vector.
        found: usize,
        /// Dimensions of the collection.
        wanted: usize,
    },
    /// A filter is not of the form that is read; a client's mistake.
    #[error("{0}")]
    InvalidFilter(String),
    /// A parameter is outside its range; a client's mistake.
    #[error("{0}")]
    InvalidParameter(String),
    /// No such collection.
    #[error("there is no collection {0:?}")]
    NoCollection(String),
    /// No such item.
    #[error("collection {collection:?} has no item {id:?}")]
    NoItem {
        /// Name of the collection.
        collection: String,
        /// Id that was asked for.
        id: String,
    },
    /// The collection was made with another model.
    #[error("{0}")]
    Conflict(String),
    /// The collection exists where it must not.
    #[error("collection {0:?} exists already")]
    Exists(String),
    /// The collection, or all of them, are not in memory yet.
    #[error("{0}: try again in a few seconds")]
    Loading(String),
    /// Another process has the store open.
    #[error("{} is in use by another process: stop it, or use another --data-dir", .0.display())]
    InUse(PathBuf),
    /// A file is damaged. It is left as it is.
    #[error("{} is damaged ({detail}): restore it from a backup or a snapshot; nothing was changed", .path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A stored item cannot be read. It is left as it is.
    #[error("item {id:?} is damaged ({reason}): store it again, or delete it")]
    DamagedItem {
        /// Id of the item.
        id: String,
        /// What was found.
        reason: String,
    },
    /// The operating system refuses to write; what cannot be written now may be later.
    #[error("{} cannot be read or written: {cause}", .path.display())]
    Unwritable {
        /// File of the database.
        path: PathBuf,
        /// The operating system's first words about it.
        cause: String,
    },
    /// The data folder is not what it was when it was opened.
    #[error("{} was removed or replaced while it was open: put it back, or restart", .0.display())]
    Moved(PathBuf),
    /// A snapshot was written by a later version of this program.
    #[error("{}: {detail}", .path.display())]
    Unsupported {
        /// The snapshot.
        path: PathBuf,
        /// Its version and what this program reads.
        detail: String,
    },
    /// No caller waits for the answer any more.
    #[error(transparent)]
    Cancelled(#[from] dino_vision::cancel::Cancelled),
    /// Other requests hold all connections to the database of the collections.
    #[error("all connections to the database of the collections are at work for other requests (--index-connections)")]
    Busy,
    /// The database of the collections does not answer; it may do so again.
    #[error("the database of the collections cannot be reached: {0}")]
    Unreachable(String),
    /// One of the databases that hold the collections together does not answer; it may do so again.
    #[error("the database {database} of the collections cannot be reached: {reason}")]
    PartUnreachable {
        /// Its host and name.
        database: String,
        /// What happened.
        reason: String,
    },
    /// A database answers, and did not get to do this in time; it may do so again.
    #[error("the database {database} of the collections is busy: {reason}")]
    Slow {
        /// Its host and name.
        database: String,
        /// What took so long.
        reason: String,
    },
    /// The database is not one that can hold collections.
    #[error("the database cannot hold collections: {0}")]
    Unsuitable(String),
    /// The database refused to do something; the source says why.
    #[error("the database of the collections: {0}")]
    Sql(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused to read or write. The message of the source names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The database could not do its work; the source says why.
    #[error("{}: {source}", .path.display())]
    Database {
        /// File of the database.
        path: PathBuf,
        /// The database's own error.
        source: Box<redb::Error>,
    },
}

impl Error {
    pub(super) fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), detail: detail.into() }
    }

    /// Sorts a database error at `path` into the variants above.
    pub(super) fn database(path: &Path, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::InUse(path.to_owned()),
            redb::Error::Corrupted(detail) => Self::damaged(path, detail),
            error @ (redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::UpgradeRequired(_)) => Self::damaged(path, error.to_string()),
            // A file that is cut, or that is no database at all, comes back as one of these two.
            redb::Error::Io(error) if matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) => {
                Self::damaged(path, error.to_string())
            }
            source => Self::Database { path: path.to_owned(), source: Box::new(source) },
        }
    }
}
