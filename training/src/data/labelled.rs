//! Pictures whose classes are known: by the folders directly below a root, or by what is beside them in tar files.
//!
//! ```
//! use dino_train::data::labelled::Labelled;
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val");
//! let pictures = Labelled::open(folder.as_ref(), 0, &[])?;
//! let first = &pictures.classes()[pictures.class(0) as usize];
//! assert!(pictures.name(0).starts_with(&format!("{first}/")));
//! # Ok::<(), dino_train::data::pictures::Error>(())
//! ```

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
    /// Pictures of no class.
    loose: usize,
    classes: Vec<String>,
}

impl Labelled {
    /// Lists a folder; up to `cache` bytes of decoded pictures stay in memory. Classes have the numbers of `known`, further ones follow
    /// in the order of their names. Pictures of no class are left out and named.
    ///
    /// # Errors
    /// When there is no folder, no picture, or no picture has a class.
    pub fn open(root: &Path, cache: usize, known: &[String]) -> Result<Self, Error> {
        let labelled = Self::list(root, cache, known)?;
        if labelled.items.is_empty() {
            return Err(Error::NoClasses { root: root.to_owned(), count: labelled.loose });
        }
        let found: BTreeSet<u32> = labelled.items.iter().map(|item| item.1).collect();
        if let [only] = found.iter().collect::<Vec<_>>()[..] {
            tracing::warn!(
                "all pictures of {} are of one class, {:?}; are the folders of the classes one further down?",
                root.display(),
                labelled.classes[*only as usize]
            );
        }
        if let Some(first) = labelled.first_loose() {
            let more = if labelled.loose > 1 { format!(" (and {} more)", labelled.loose - 1) } else { String::new() };
            tracing::warn!("skipped {}: it is in no class folder{more}", labelled.pictures.name(first));
        }
        Ok(labelled)
    }

    /// Lists a folder whose pictures need no class: those without one are of a last class, `unknown`.
    ///
    /// # Errors
    /// When there is no folder, or no picture.
    pub fn open_any(root: &Path, cache: usize, unknown: &str) -> Result<Self, Error> {
        let mut labelled = Self::list(root, cache, &[])?;
        if labelled.loose > 0 {
            let number = labelled.classes.len() as u32;
            labelled.classes.push(unknown.to_owned());
            let mut classes = vec![number; labelled.pictures.len()];
            labelled.items.iter().for_each(|&(index, class)| classes[index] = class);
            labelled.items = classes.into_iter().enumerate().collect();
            labelled.loose = 0;
        }
        Ok(labelled)
    }

    fn list(root: &Path, cache: usize, known: &[String]) -> Result<Self, Error> {
        let pictures = Pictures::open(root, None, cache)?;
        // Names that look the same are one class, whatever Unicode form a file system gives them.
        let names: Vec<Option<String>> =
            (0..pictures.len()).map(|index| pictures.class(index).map(|name| nfc(&name).into_owned())).collect();
        let found: BTreeSet<&String> = names.iter().flatten().collect();
        let mut classes = known.to_vec();
        let is_known = |name: &str| known.iter().any(|known| nfc(known) == name);
        classes.extend(found.into_iter().filter(|name| !is_known(name)).cloned());
        let numbers: HashMap<String, u32> = classes.iter().map(|name| nfc(name).into_owned()).zip(0..).collect();
        let class_of = |(index, name): (usize, Option<String>)| Some((index, *numbers.get(&name?)?));
        let items: Vec<(usize, u32)> = names.into_iter().enumerate().filter_map(class_of).collect();
        let loose = pictures.len() - items.len();
        Ok(Self { pictures, items, loose, classes })
    }

    /// The first picture of no class.
    fn first_loose(&self) -> Option<usize> {
        let ends_before = |(place, item): (usize, &(usize, u32))| (item.0 > place).then_some(place);
        let first = self.items.iter().enumerate().find_map(ends_before).unwrap_or(self.items.len());
        (first < self.pictures.len()).then_some(first)
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
