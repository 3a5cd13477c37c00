//! Pictures whose classes are known: the folders directly below a root are the classes.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use image::RgbImage;

use super::pictures::{Error, Pictures};

/// The pictures of an `ImageFolder` and the class of each.
#[derive(Debug)]
pub struct Labelled {
    pictures: Pictures,
    /// Number of the picture, and of its class.
    items: Vec<(usize, u32)>,
    classes: Vec<String>,
}

impl Labelled {
    /// Lists a folder; up to `cache` bytes of decoded pictures stay in memory. Classes have the numbers of `known`, further ones follow
    /// in the order of their names. Pictures in no class folder are left out and named.
    ///
    /// # Errors
    /// When there is no folder, or no picture in a class folder.
    pub fn open(root: &Path, cache: usize, known: &[String]) -> Result<Self, Error> {
        let pictures = Pictures::open(root, None, cache)?;
        let class = |index: usize| pictures.name(index).split_once('/').map(|(class, _)| class.to_owned());
        let found: BTreeSet<String> = (0..pictures.len()).filter_map(class).collect();
        let mut classes = known.to_vec();
        classes.extend(found.into_iter().filter(|name| !known.contains(name)));
        let numbers: HashMap<&String, u32> = classes.iter().zip(0..).collect();
        let mut items = Vec::with_capacity(pictures.len());
        for index in 0..pictures.len() {
            let Some(name) = class(index) else {
                tracing::warn!("skipped {}: it is in no class folder", pictures.name(index));
                continue;
            };
            items.extend(numbers.get(&name).map(|&number| (index, number)));
        }
        if items.is_empty() { Err(Error::Empty(root.to_owned())) } else { Ok(Self { pictures, items, classes }) }
    }

    /// Names of the classes, by their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Never: there is an error instead.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Class of a picture.
    pub fn class(&self, index: usize) -> u32 {
        self.items[index].1
    }

    /// Path of a picture below the root.
    pub fn name(&self, index: usize) -> &str {
        self.pictures.name(self.items[index].0)
    }

    /// Decodes a picture; none if it is unreadable, which is said once.
    pub fn get(&self, index: usize) -> Option<Arc<RgbImage>> {
        self.pictures.get(self.items[index].0)
    }

    /// Number of files that were found unreadable so far.
    pub fn broken(&self) -> usize {
        self.pictures.broken()
    }
}
