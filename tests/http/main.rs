//! The server as a whole program, over real HTTP, with the real ONNX Runtime and a tiny model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]
#![expect(clippy::float_cmp, reason = "answers that should be equal are equal to the last bit")]

mod answers;
mod as_a_folder;
mod balanced;
mod browser;
mod busy_store;
mod cache;
mod clients;
mod collections;
mod deadlines;
mod dense;
mod duplicates;
mod durable;
mod early;
mod end_to_end;
mod faults;
mod formats;
mod forty_pictures;
mod graphs;
mod guide;
mod harness;
mod hub;
mod json;
mod keys;
mod kill;
mod layer;
mod lifecycle;
mod lost_parts;
mod map;
#[path = "../markdown/mod.rs"]
mod markdown;
mod matches;
mod metrics;
mod min_similarity;
mod openai;
mod openvino;
mod page;
mod patches;
mod pictures;
mod place;
mod plain;
mod postgres;
mod prefix;
mod requests;
mod runtime;
mod schema;
mod screenshots;
mod segment;
mod sharded;
mod sharded_reads;
mod shared;
mod slow_readers;
mod slow_store;
mod soak;
mod tabs;
mod traces;
mod urls;
mod visitor;
