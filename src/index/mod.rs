//! Collections of labelled vectors: where they are kept, exact and approximate search, and the k-NN vote.
//!
//! A [`Store`] hands out [`Collection`]s. There are two: [`EmbeddedStore`], a folder that one process has open, and
//! `PostgresStore`, a database that several servers share (feature `postgres`).
//! [`dino_vision::vote`] turns the neighbours that a search finds into class scores, and a [`snapshot`] carries a collection elsewhere.

mod bounded;
pub mod checksum;
pub mod embedded;
mod error;
mod filter;
mod index_options;
mod info;
mod item;
mod min_similarity;
mod name;
mod options;
mod page;
mod patches;
#[cfg(feature = "postgres")]
mod postgres;
mod recall;
mod sample;
mod search;
pub mod snapshot;
mod spec;
mod store;
mod value_set;
#[cfg(not(feature = "postgres"))]
mod without_postgres;

pub use bounded::Bounded;
pub use embedded::{EmbeddedCollection, EmbeddedStore, Similarity};
pub use error::Error;
pub use filter::Filter;
pub use index_options::{IndexOptions, VectorFormat};
pub use info::{Connections, DamagedItems, IndexState, Info, Loading};
pub use item::{Attached, Damaged, Item, MAX_LABELS, MAX_METADATA, MAX_STRING, MAX_THUMBNAIL, NewItem, StoredItem, StoredPatches};
pub use min_similarity::MinSimilarity;
pub use name::CollectionName;
pub use options::{Opening, Options, StoreOptions};
pub use page::{MAX_PAGE, Page};
pub use patches::{ANOMALOUS, NORMAL, PatchBank};
#[cfg(feature = "postgres")]
pub use postgres::{IndexUrl, PostgresCollection, PostgresOptions, PostgresStore};
pub use recall::Recall;
pub use sample::{Sample, Version};
pub use search::{DEFAULT_EF, Neighbour, Search};
pub use spec::{Kind, KindName, MAX_DIM, ModelTag, OnExisting, PatchOptions, Spec};
pub use store::{Collection, Items, Store, Visit, VisitVector};
#[cfg(not(feature = "postgres"))]
pub use without_postgres::IndexUrl;
