//! Collections of labelled vectors: where they are kept, exact and approximate search, and the k-NN vote.
//!
//! A [`Store`] hands out [`Collection`]s. There are three: [`EmbeddedStore`], a folder that one process has open, `PostgresStore`, a
//! database that several servers share, and `ShardedStore`, several databases that hold collections together (feature `postgres`).
//! [`dino_vision::vote`] turns the neighbours that a search finds into class scores, and a [`snapshot`] carries a collection elsewhere.
//!
//! ```
//! use dino_server::index::{Collection, EmbeddedStore, IndexOptions, Item, ModelTag, NewItem, Search, Spec};
//! use dino_vision::vote::{DEFAULT_TEMPERATURE, vote};
//!
//! let folder = tempfile::tempdir()?;
//! let store = EmbeddedStore::open(folder.path(), IndexOptions::default())?;
//! let model = ModelTag { fingerprint: "0".repeat(32), precision: None };
//! let (collection, _) = store.create(&"animals".parse()?, Spec::pictures(2, model))?;
//! let item = |id: &str, label: &str, vector: [f32; 2]| {
//!     let item = Item { id: id.into(), labels: vec![label.into()], metadata: Default::default(), source: None, fingerprint: None };
//!     NewItem { item, vector: vector.to_vec(), thumbnail: None, patches: None }
//! };
//! collection.upsert(vec![item("1.jpg", "cat", [1.0, 0.0]), item("2.jpg", "dog", [0.0, 1.0])])?;
//!
//! let found = collection.search(&[3.0, 1.0], &Search { k: 2, ..Search::default() })?;
//! let scores = vote(found.iter().map(|near| (near.item.labels.as_slice(), near.similarity)), DEFAULT_TEMPERATURE);
//! assert_eq!(scores[0].label, "cat");
//! # Ok::<(), dino_server::index::Error>(())
//! ```

mod bounded;
pub mod checksum;
mod embedded;
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
pub use info::{Connections, DamagedItems, DatabaseState, IndexState, Info, Loading};
pub use item::{Attached, Damaged, Item, MAX_LABELS, MAX_METADATA, MAX_STRING, MAX_THUMBNAIL, NewItem, StoredItem, StoredPatches};
pub use min_similarity::MinSimilarity;
pub use name::CollectionName;
pub use options::{Opening, Options, StoreOptions};
pub use page::{MAX_PAGE, Page};
pub use patches::{ANOMALOUS, NORMAL, PatchBank};
#[cfg(feature = "postgres")]
pub use postgres::{IndexUrl, PostgresCollection, PostgresOptions, PostgresStore, ShardedStore};
pub use recall::Recall;
pub use sample::{Sample, Version};
pub use search::{DEFAULT_EF, Neighbour, Search};
pub use spec::{Kind, KindName, MAX_DIM, ModelTag, OnExisting, PatchOptions, Spec};
pub use store::{Collection, Items, Store, Visit, VisitVector};
#[cfg(not(feature = "postgres"))]
pub use without_postgres::IndexUrl;
