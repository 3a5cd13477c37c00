//! Everything that the server and the trainer share: it knows neither HTTP nor training.
//!
//! Data flows one way: untrusted bytes become pixels in [`media`], pixels become the model's input in [`transform`], the outputs of
//! [`model`] become vectors ([`embedding`]), votes ([`vote`]), classes ([`head`], of each pixel in [`dense`]), maps ([`tsne`]), masks ([`segment`]), anomalies ([`anomaly`]), masks by example ([`in_context`]), matches of two pictures ([`correspondence`]) or groups of near-copies ([`duplicates`]). [`batch`] is
//! the queue before a model's sessions, [`placement`] starts these and compares their device with the CPU ([`agreement`]), and [`bulk`]
//! runs a whole folder of pictures through it.

#![deny(unsafe_code)]

pub mod agreement;
pub mod anomaly;
pub mod batch;
pub mod bulk;
mod byte_rows;
pub mod cancel;
pub mod cores;
pub mod correspondence;
pub mod dense;
pub mod duplicates;
pub mod embedding;
pub mod head;
pub mod in_context;
mod lanczos;
pub mod links;
mod mask_defaults;
pub mod media;
pub mod model;
pub mod placement;
mod pooling;
pub mod protobuf;
pub mod segment;
pub mod splitmix;
pub mod transform;
pub mod tsne;
pub mod unicode;
pub mod unit_rows;
pub mod vote;
pub mod workers;
