//! Hashes that say which weights, and which vectors, belong together.

use sha2::{Digest, Sha256};

use super::Manifest;
use crate::pooling::Pooling;

/// SHA-256 in hex, as manifests write it.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// See [`Model::fingerprint`](super::Model::fingerprint).
pub(super) fn of(manifest: &Manifest, pooling: Pooling) -> String {
    let weights = manifest.source.sha256.to_ascii_lowercase();
    let transform = serde_json::to_string(&manifest.transform).expect("numbers and names alone");
    let whitening =
        manifest.whitening.as_ref().map_or_else(String::new, |whitening| format!("\n{}", whitening.sha256.to_ascii_lowercase()));
    let mut hash = sha256(format!("{weights}\n{pooling}\n{transform}{whitening}").as_bytes());
    hash.truncate(32);
    hash
}
