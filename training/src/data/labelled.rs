//! Pictures whose classes are known: the folders directly below a root are the classes.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use dino_vision::unicode::nfc;
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
        // Names that look the same are one class, whatever Unicode form a file system gives them.
        let found: BTreeSet<Cow<'_, str>> = (0..pictures.len()).filter_map(|index| pictures.class(index)).map(nfc).collect();
        if let [only] = found.iter().collect::<Vec<_>>()[..] {
            tracing::warn!(
                "all pictures of {} are of one class, {only:?}; are the folders of the classes one further down?",
                root.display()
            );
        }
        let mut classes = known.to_vec();
        let is_known = |name: &str| known.iter().any(|known| nfc(known) == name);
        classes.extend(found.into_iter().map(Cow::into_owned).filter(|name| !is_known(name)));
        let numbers: HashMap<String, u32> = classes.iter().map(|name| nfc(name).into_owned()).zip(0..).collect();
        let mut items = Vec::with_capacity(pictures.len());
        for index in 0..pictures.len() {
            let Some(name) = pictures.class(index) else {
                tracing::warn!("skipped {}: it is in no class folder", pictures.name(index));
                continue;
            };
            items.extend(numbers.get(nfc(name).as_ref()).map(|&number| (index, number)));
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

#[cfg(test)]
mod tests {
    use super::Labelled;

    #[test]
    fn folders_whose_names_look_the_same_are_one_class() {
        let folder = tempfile::tempdir().unwrap();
        let (train, val) = (folder.path().join("train"), folder.path().join("val"));
        for (root, class) in [(&train, "Tür"), (&train, "Fenster"), (&val, "Tu\u{308}r"), (&val, "Fenster")] {
            fs_err::create_dir_all(root.join(class)).unwrap();
            fs_err::write(root.join(class).join("1.jpg"), "x").unwrap();
        }
        let (train, val) = Labelled::train_and_val(&train, 0, &val).unwrap();
        assert_eq!(train.classes(), ["Fenster", "Tür"]);
        assert_eq!(val.classes(), train.classes());
    }
}
