//! Near-copies: which pictures have the same pixels, and which show the same scene.
//!
//! Similar is not duplicate. Two shots of a burst show the same scene, and each may be the one to keep; a picture that was encoded again
//! or made smaller is a copy. So there are two stages, and the answer tells them apart:
//!
//! 1. **Same pixels.** [`Fingerprint`]s are compared: a perceptual hash of 256 bits and the colours of 16 parts. Files with the same
//!    bytes are copies too. A flat picture (a white page, a black frame) has no hash that means anything, and is a copy of the same bytes
//!    alone.
//! 2. **Same scene.** Vectors are compared, each with each, as bytes: cosines are right to about 0.001.
//!
//! Both stages connect items, and a [`Group`] is what is connected. Such groups may chain: a like b and b like c puts a and c into one
//! group, however little they have in common. [`Group::lowest_similarity`] shows it.
//!
//! Memory is that of the items ([`Candidates`]) and of three numbers for each while they are compared; pairs are counted, and not kept.
//!
//! | file | what |
//! | --- | --- |
//! | `fingerprint` | what is kept of a picture's pixels |
//! | `copies` | the first stage: parts of hashes that are equal |
//! | `scenes` | the second stage: products of blocks |
//! | `forest`, `groups` | what is connected; groups and their order |
//!
//! ```
//! use dino_vision::duplicates::{Candidate, Candidates, Fingerprint, Kind, Options};
//! use image::{Rgb, RgbImage, imageops};
//!
//! let wave = |x: u32| ((x as f32 * 0.07).sin() * 100.0 + 128.0) as u8;
//! let photo = RgbImage::from_fn(320, 200, |x, y| Rgb([wave(x), wave(y), wave(x + 2 * y)]));
//! let smaller = imageops::resize(&photo, 160, 100, imageops::FilterType::Triangle);
//! let other = imageops::rotate180(&photo);
//!
//! let mut candidates = Candidates::new(None);
//! for (id, picture) in [("photo.png", &photo), ("smaller.png", &smaller), ("other.png", &other)] {
//!     candidates.push(Candidate { id, source: None, fingerprint: Some(&Fingerprint::of(picture)), vector: &[] });
//! }
//! let groups = candidates.compare(Options { min_similarity: None }, &|_| ())?.groups;
//! let ids: Vec<&str> = groups[0].members.iter().map(|member| candidates.id(member.item)).collect();
//! assert_eq!((groups.len(), groups[0].kind), (1, Kind::Copy));
//! assert_eq!(ids, ["photo.png", "smaller.png"]);
//! # Ok::<(), dino_vision::cancel::Cancelled>(())
//! ```

mod copies;
mod fingerprint;
mod forest;
mod groups;
mod scenes;

use std::collections::HashMap;

use crate::byte_rows::Rows;
use crate::cancel::Cancelled;

pub use fingerprint::Fingerprint;
pub use groups::{Group, Kind, Member};
pub use scenes::Pairs;

use forest::Forest;

/// The least cosine of two pictures of one scene, where none is asked for.
///
/// With the demo model 61 of 69 pairs of neighbouring frames of three videos reach it, none of 30,229 pairs of photographs of different
/// classes, and 11 of 896 pairs of one class.
pub const DEFAULT_SIMILARITY: f32 = 0.95;

/// An item to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate<'a> {
    /// Unique, and what decides between equals.
    pub id: &'a str,
    /// SHA-256 of the file, where it is known: items of the same one are copies.
    pub source: Option<&'a str>,
    /// That of its picture, where it came as a picture.
    pub fingerprint: Option<&'a Fingerprint>,
    /// Its vector `[dim]` of any length; none where pixels alone are compared.
    pub vector: &'a [f32],
}

/// Items that are compared with each other.
#[derive(Debug)]
pub struct Candidates {
    ids: Vec<String>,
    fingerprints: Vec<Option<Fingerprint>>,
    /// The first item of each source.
    sources: HashMap<String, u32>,
    /// Pairs of the same source.
    same_source: Vec<(u32, u32)>,
    vectors: Option<Rows>,
}

/// What connects two items.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The least cosine of two items of one scene; `None` compares pixels alone.
    pub min_similarity: Option<f32>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Groups of at least two items, in the order of the ids of their first items.
    pub groups: Vec<Group>,
    /// Of the second stage.
    pub pairs: Pairs,
}

impl Candidates {
    /// No items yet, whose vectors have `dim` numbers; `None` where they have none.
    pub fn new(dim: Option<usize>) -> Self {
        Self { ids: Vec::new(), fingerprints: Vec::new(), sources: HashMap::new(), same_source: Vec::new(), vectors: dim.map(Rows::new) }
    }

    /// Adds an item. Numbers are given in order, from 0.
    pub fn push(&mut self, Candidate { id, source, fingerprint, vector }: Candidate<'_>) {
        let number = self.ids.len() as u32;
        self.ids.push(id.to_owned());
        self.fingerprints.push(fingerprint.copied());
        if let Some(source) = source {
            match self.sources.get(source) {
                Some(&first) => self.same_source.push((first, number)),
                None => {
                    self.sources.insert(source.to_owned(), number);
                }
            }
        }
        if let Some(rows) = &mut self.vectors {
            rows.push(vector.iter().copied());
        }
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Id of an item.
    pub fn id(&self, number: usize) -> &str {
        &self.ids[number]
    }

    /// Fingerprint of an item.
    pub fn fingerprint(&self, number: usize) -> Option<&Fingerprint> {
        self.fingerprints[number].as_ref()
    }

    /// Items without a fingerprint: they came as vectors, or were stored by a version that made none.
    pub fn without_fingerprint(&self) -> usize {
        self.fingerprints.iter().filter(|fingerprint| fingerprint.is_none()).count()
    }

    /// Compares all items with each other, on all cores, and says after each step which share of that is done.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn compare(&self, options: Options, progress: &dyn Fn(f64)) -> Result<Found, Cancelled> {
        let mut copies = Forest::new(self.len());
        for &(a, b) in &self.same_source {
            copies.unite(a, b);
        }
        copies::unite(&self.fingerprints, &mut copies)?;
        let (mut connected, mut pairs) = (copies.clone(), Pairs::default());
        if let (Some(rows), Some(least)) = (&self.vectors, options.min_similarity) {
            pairs = scenes::unite(rows, least, &mut connected, progress)?;
        }
        progress(1.0);
        Ok(Found { groups: groups::of(self, &mut copies, &mut connected)?, pairs })
    }

    /// The cosine of two items.
    fn similarity(&self, a: usize, b: usize) -> Option<f32> {
        Some(self.vectors.as_ref()?.cosine(a, b))
    }

    /// Pixels of the picture of an item, 0 where they are not known.
    fn pixels(&self, number: usize) -> u64 {
        self.fingerprints[number].as_ref().map_or(0, Fingerprint::pixels)
    }
}
