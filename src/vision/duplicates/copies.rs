//! The first stage: pairs of hashes that differ in few bits, found without comparing all pairs (multi-index hashing, Norouzi et al.,
//! <https://arxiv.org/abs/1307.2982>).
//!
//! A hash is cut into one part more than the most bits in which copies differ. Then at least one part of two copies is equal, and only
//! hashes that share a part are compared.

use std::collections::HashMap;

use super::Fingerprint;
use super::fingerprint::{BITS, MOST_BITS};
use super::forest::Forest;
use crate::cancel::{self, Cancelled};

/// Parts of a hash.
const PARTS: usize = MOST_BITS as usize + 1;
/// Bits of a part. The last few bits of a hash are in none.
const PART_BITS: usize = BITS / PARTS;

/// Comparisons between two looks at whether the request has ended.
const STEP: usize = 1 << 16;

/// Connects items whose pictures have the same pixels.
///
/// # Errors
/// [`Cancelled`].
pub(super) fn unite(fingerprints: &[Option<Fingerprint>], forest: &mut Forest) -> Result<(), Cancelled> {
    // Many equal ones would be compared with each other in each part.
    let mut firsts: HashMap<Fingerprint, u32> = HashMap::new();
    let mut distinct = Vec::new();
    for (item, fingerprint) in (0..).zip(fingerprints) {
        let Some(fingerprint) = fingerprint.filter(|fingerprint| !fingerprint.is_flat()) else { continue };
        let first = *firsts.entry(fingerprint).or_insert(item);
        if first == item {
            distinct.push((fingerprint, item));
        } else {
            forest.unite(first, item);
        }
    }
    drop(firsts);

    let mut compared = 0;
    for part in 0..PARTS {
        let mut keys: Vec<(u16, u32)> = distinct.iter().zip(0..).map(|((fingerprint, _), place)| (key(fingerprint, part), place)).collect();
        keys.sort_unstable();
        for same in keys.chunk_by(|a, b| a.0 == b.0) {
            for (at, &(_, one)) in same.iter().enumerate() {
                let (fingerprint, item) = &distinct[one as usize];
                for &(_, other) in &same[at + 1..] {
                    let (other, other_item) = &distinct[other as usize];
                    if fingerprint.is_copy(other) {
                        forest.unite(*item, *other_item);
                    }
                }
                compared += same.len() - at;
                if compared >= STEP {
                    compared = 0;
                    cancel::check()?;
                }
            }
        }
    }
    Ok(())
}

/// The bits of a part. They are spread over the hash: neighbouring frequencies are alike in many pictures.
fn key(fingerprint: &Fingerprint, part: usize) -> u16 {
    (0..PART_BITS).fold(0, |key, at| key << 1 | u16::from(fingerprint.bit(at * PARTS + part)))
}
