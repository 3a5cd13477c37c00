//! The store of one process: a database file as the truth, vectors in memory, and above a size a graph.
//!
//! [`EmbeddedStore`] opens a data folder and hands out [`EmbeddedCollection`]s. The graph can always be built again from the
//! database.

mod codes;
mod collection;
mod commit;
mod disk;
mod dump;
#[cfg(test)]
mod full_disk;
mod graph;
mod handle;
mod indexing;
mod load;
#[cfg(test)]
mod memory;
mod mix;
mod place;
#[cfg(test)]
mod power_loss;
mod reserve;
mod rows;
mod sample;
mod scan;
mod search;
mod similarity;
mod store;
mod sweep;

pub use collection::EmbeddedCollection;
pub use rows::Vectors;
pub use similarity::Similarity;
pub use store::{EmbeddedStore, Options};

#[cfg(test)]
use super::ModelTag;
use super::{
    Collection, CollectionName, Error, Filter, IndexState, Info, Items, Loading, Neighbour, OnExisting, Page, Recall, Sample, Search, Spec,
    Store, Version, Visit, checksum, info, item, sample::newest_of, store::no_item,
};
