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
    /// Pictures in no class folder.
    loose: usize,
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
        let found: BTreeSet<&str> = (0..pictures.len()).filter_map(|index| pictures.class(index)).collect();
        if let [only] = *found.iter().copied().collect::<Vec<_>>() {
            tracing::warn!(
                "all pictures of {} are of one class, {only:?}; are the folders of the classes one further down?",
                root.display()
            );
        }
        let mut classes = known.to_vec();
        classes.extend(found.into_iter().map(str::to_owned).filter(|name| !known.contains(name)));
        let numbers: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let mut items = Vec::with_capacity(pictures.len());
        for index in 0..pictures.len() {
            let Some(name) = pictures.class(index) else {
                tracing::warn!("skipped {}: it is in no class folder", pictures.name(index));
                continue;
            };
            items.extend(numbers.get(name).map(|&number| (index, number)));
        }
        let loose = pictures.len() - items.len();
        if items.is_empty() { Err(Error::Empty(root.to_owned())) } else { Ok(Self { pictures, items, loose, classes }) }
    }

    /// A folder to learn from, of which up to `cache` bytes are kept, and one to measure with. Classes of the second that the first has
    /// not are named.
    ///
    /// # Errors
    /// As [`Labelled::open`].
    pub fn train_and_val(train: &Path, cache: usize, val: &Path) -> Result<(Self, Self), Error> {
        let train = Self::open(train, cache, &[])?;
        let val = Self::open(val, 0, train.classes())?;
        for name in &val.classes()[train.classes().len()..] {
            tracing::warn!("class {name:?} of val is not in train: its pictures count as wrong");
        }
        Ok((train, val))
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

    /// Says how many files of some sets were skipped, if any were.
    pub fn count_skipped(sets: &[&Self]) {
        let skipped: usize = sets.iter().map(|set| set.skipped()).sum();
        if skipped > 0 {
            tracing::warn!("{skipped} files were skipped");
        }
    }

    /// Number of files that were skipped so far.
    pub fn skipped(&self) -> usize {
        self.pictures.left_out() + self.loose + self.pictures.broken()
    }
}
