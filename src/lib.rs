//! Serves DINO vision backbones: embeddings, k-NN classification and masks over HTTP.
//!
//! What needs no server is in `dino_vision`. Here are the models that are served ([`serving`]), the embeddings that are kept by content
//! ([`embedding_cache`]), the collections that are searched
//! ([`index`]), the fetching of pictures from other hosts ([`fetch`]), the formats of embeddings and of bulk files ([`encoding`],
//! [`files`]), and [`http`], which alone speaks of status codes.

#![deny(unsafe_code)]

pub mod config;
pub mod embedding_cache;
pub mod encoding;
pub mod fetch;
pub mod files;
pub mod flags;
pub mod http;
pub mod index;
pub mod serving;
pub mod telemetry;
pub mod traces;
