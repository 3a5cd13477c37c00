//! Collections of labelled vectors: the durable store, exact and approximate search, and the k-NN vote.
//!
//! [`Store`] opens a data folder and hands out [`Collection`]s. The database on the disk is the truth; in memory each
//! collection has its vectors side by side, and above a size a graph for approximate search, which can always be
//! built again. [`vote`] turns the neighbours that a search finds into class scores, and a [`snapshot`] carries a collection elsewhere.

pub mod checksum;
mod collection;
mod commit;
mod disk;
mod dump;
mod error;
mod filter;
mod graph;
mod indexing;
mod info;
mod item;
mod name;
#[cfg(test)]
mod power_loss;
mod rows;
mod sample;
mod search;
mod similarity;
pub mod snapshot;
mod store;
pub mod vote;

pub use collection::{Collection, MAX_PAGE};
pub use disk::{ModelTag, OnExisting, Spec};
pub use error::Error;
pub use filter::Filter;
pub use info::{IndexState, Info, Page, Recall};
pub use item::{Item, MAX_LABELS, MAX_METADATA, MAX_TEXT, MAX_THUMBNAIL, NewItem, StoredItem};
pub use name::CollectionName;
pub use sample::{Sample, Version};
pub use search::{DEFAULT_EF, Neighbour, Predicate, Search};
pub use similarity::Similarity;
pub use store::{MAX_DIM, Options, Store};
