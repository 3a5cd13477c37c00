//! Names of files, which come in two Unicode forms: what a Mac unpacks is decomposed, what people type is composed.
//!
//! ```
//! use dino_vision::bulk::names::ids;
//!
//! // The first name is decomposed: a `u`, then its two dots.
//! assert_eq!(ids(&["Tu\u{308}r.jpg", "Haus.jpg"], 255), ["Tür.jpg", "Haus.jpg"]);
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::unicode::nfc;

/// Ids of files by their names: composed (NFC), so that a tree that was copied elsewhere has the ids that it had. Names that
/// differ in their form alone keep it, as do those that would become longer than `longest` bytes.
pub fn ids<'a>(names: &[&'a str], longest: usize) -> Vec<Cow<'a, str>> {
    let composed: Vec<Cow<'a, str>> = names.iter().map(|name| nfc(name)).collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for name in composed.iter().filter(|name| !name.is_ascii()) {
        *counts.entry(name).or_default() += 1;
    }
    let keeps = |name: &Cow<'_, str>| counts.get(name.as_ref()).is_some_and(|&count| count > 1) || name.len() > longest;
    let kept: Vec<bool> = composed.iter().map(keeps).collect();
    composed.into_iter().zip(names).zip(kept).map(|((composed, name), kept)| if kept { Cow::Borrowed(*name) } else { composed }).collect()
}

/// Finds files whose names are of another form than the one they are asked for by, and remembers that it had to.
#[derive(Default)]
pub struct Finder {
    /// Of each folder that was looked through, the names beyond ASCII by their composed form.
    folders: Mutex<HashMap<PathBuf, Arc<HashMap<String, OsString>>>>,
    found: Mutex<(usize, Option<PathBuf>)>,
}

impl Finder {
    /// The file at `path`, else the one whose parts equal those of `path` but for their Unicode form; the first by name where
    /// there are several.
    pub fn find(&self, path: &Path) -> Option<PathBuf> {
        if path.exists() {
            return Some(path.to_owned());
        }
        if path.as_os_str().is_ascii() {
            return None;
        }
        let mut found = PathBuf::new();
        for part in path.components() {
            let next = found.join(part);
            found = match part {
                Component::Normal(name) if !next.exists() => {
                    let wanted = nfc(name.to_str()?).into_owned();
                    let other = self.names(&found).get(&wanted)?.clone();
                    found.join(other)
                }
                _ => next,
            };
        }
        let (count, first) = &mut *self.found.lock();
        *count += 1;
        first.get_or_insert_with(|| found.clone());
        Some(found)
    }

    /// How many files had to be looked for, and the first of them.
    pub fn found(&self) -> (usize, Option<PathBuf>) {
        self.found.lock().clone()
    }

    fn names(&self, folder: &Path) -> Arc<HashMap<String, OsString>> {
        if let Some(known) = self.folders.lock().get(folder) {
            return Arc::clone(known);
        }
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        // A folder that cannot be read holds nothing that could be found.
        let entries = fs_err::read_dir(here).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<OsString> = entries.map(|entry| entry.file_name()).filter(|name| !name.is_ascii()).collect();
        names.sort_unstable();
        // The last of equal ones would stay.
        names.reverse();
        let names = names.into_iter().filter_map(|name| Some((nfc(name.to_str()?).into_owned(), name))).collect();
        let names = Arc::new(names);
        self.folders.lock().insert(folder.to_owned(), Arc::clone(&names));
        names
    }
}

#[cfg(test)]
mod tests {
    use super::{Finder, ids};

    const COMPOSED: &str = "Tür/Größe 1.jpg";
    const DECOMPOSED: &str = "Tu\u{308}r/Gro\u{308}ße 1.jpg";

    #[test]
    fn ids_are_composed_unless_both_forms_are_there() {
        assert_eq!(ids(&["a", DECOMPOSED], 100), ["a", COMPOSED]);
        assert_eq!(ids(&[COMPOSED, "a"], 100), [COMPOSED, "a"]);
        assert_eq!(ids(&[DECOMPOSED, "a", COMPOSED], 100), [DECOMPOSED, "a", COMPOSED]);
    }

    #[test]
    fn files_are_found_in_either_form() {
        let folder = tempfile::tempdir().unwrap();
        for (stands, asked) in [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)] {
            let root = folder.path().join(stands.len().to_string());
            let file = root.join(stands);
            fs_err::create_dir_all(file.parent().unwrap()).unwrap();
            fs_err::write(&file, stands).unwrap();
            let finder = Finder::default();
            assert_eq!(finder.find(&file), Some(file.clone()));
            assert_eq!(finder.found(), (0, None));
            assert_eq!(finder.find(&root.join(asked)), Some(file.clone()));
            assert_eq!(finder.find(&root.join("Tür/none.jpg")), None);
            assert_eq!(finder.found(), (1, Some(file)));
        }
    }

    #[test]
    fn a_file_of_the_very_name_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ü", "u\u{308}"] {
            fs_err::write(folder.path().join(name), name).unwrap();
        }
        let finder = Finder::default();
        for name in ["ü", "u\u{308}"] {
            assert_eq!(finder.find(&folder.path().join(name)), Some(folder.path().join(name)));
        }
    }
}
