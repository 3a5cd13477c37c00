//! Serves DINO vision backbones: embeddings, k-NN classification and masks over HTTP.
//!
//! Data flows one way: untrusted bytes become pixels in [`media`], pixels become the model's input in
//! [`transform`], the model's outputs ([`model`]) become vectors ([`embedding`]), votes ([`index`]), maps ([`tsne`]) or masks
//! ([`segment`]), and only `http` speaks of status codes.

#![deny(unsafe_code)]

pub mod batch;
pub mod bulk;
pub mod cancel;
pub mod config;
pub mod embedding;
pub mod head;
pub mod http;
pub mod index;
mod lanczos;
pub mod manuals;
pub mod media;
pub mod model;
pub mod segment;
pub mod serving;
pub mod signals;
pub mod telemetry;
pub mod traces;
pub mod transform;
pub mod tsne;
pub mod unicode;
