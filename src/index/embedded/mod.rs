//! The store of one process: a database file as the truth, vectors in memory, and above a size a graph.
//!
//! [`EmbeddedStore`] opens a data folder and hands out [`EmbeddedCollection`]s. The graph can always be built again from the
//! database.

mod collection;
mod commit;
mod disk;
mod dump;
mod graph;
mod indexing;
#[cfg(test)]
mod power_loss;
mod rows;
mod sample;
mod search;
mod similarity;
mod store;

pub use collection::EmbeddedCollection;
pub use similarity::Similarity;
pub use store::{EmbeddedStore, Options};

#[cfg(test)]
use super::ModelTag;
use super::{
    Collection, CollectionName, Error, Filter, IndexState, Info, Neighbour, OnExisting, Page, Recall, Sample, Search, Spec, Store, Version,
    Visit, checksum, info, item, sample::newest_of, store::no_item,
};
