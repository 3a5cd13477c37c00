//! Hashes that say which weights, and which vectors, belong together.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::Manifest;
use crate::pooling::Pooling;

/// SHA-256 in hex, as manifests write it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(2 * digest.len()), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("text takes every write");
        hex
    })
}

/// See [`Model::fingerprint`](super::Model::fingerprint).
pub(super) fn of(manifest: &Manifest, pooling: Pooling) -> String {
    let weights = manifest.source.sha256.to_ascii_lowercase();
    let transform = serde_json::to_string(&manifest.transform).expect("numbers and names alone");
    let mut hash = sha256(format!("{weights}\n{pooling}\n{transform}").as_bytes());
    hash.truncate(32);
    hash
}
