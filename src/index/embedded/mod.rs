//! The store of one process: a database file as the truth, vectors in memory, and above a size a graph.
//!
//! [`EmbeddedStore`] opens a data folder and hands out [`EmbeddedCollection`]s. The graph can always be built again from the
//! database.

mod codes;
mod collection;
mod commit;
mod delete_where;
mod disk;
mod file_identity;
#[cfg(test)]
mod full_disk;
mod garbage;
mod graph;
mod graph_files;
mod handle;
#[cfg(test)]
mod in_memory;
mod indexing;
mod large_pages;
mod layout;
mod load;
#[cfg(test)]
mod power_loss;
mod recall;
mod reserve;
mod rows;
mod sample;
mod scan;
mod scan_all;
mod search;
mod similarity;
mod store;

pub use collection::EmbeddedCollection;
pub use similarity::Similarity;
pub use store::EmbeddedStore;

#[cfg(test)]
use super::ModelTag;
use super::{
    Attached, Collection, CollectionName, Error, Filter, IndexOptions, IndexState, Info, Items, Loading, Neighbour, OnExisting, Page,
    Recall, Sample, Search, Spec, Store, StoredPatches, VectorFormat, Version, Visit, VisitVector, checksum, info, item, page,
    recall::RecallCounter, sample::newest_of, store::no_item,
};
