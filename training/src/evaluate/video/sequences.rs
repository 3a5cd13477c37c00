//! Videos as folders of frames and masks: DAVIS 2017, or a folder with `frames` and `masks` for each sequence.
//!
//! ```
//! use dino_train::evaluate::video::sequences::list;
//!
//! let root = tempfile::tempdir()?;
//! for file in ["dog/frames/0.jpg", "dog/frames/1.jpg", "dog/frames/2.jpg", "dog/masks/0.png", "dog/masks/1.png", "dog/masks/2.png"] {
//!     let path = root.path().join(file);
//!     std::fs::create_dir_all(path.parent().unwrap())?;
//!     std::fs::write(path, "")?;
//! }
//! let dog = list(root.path(), "val")?.remove(0);
//! assert_eq!((dog.name.as_str(), dog.frames.len()), ("dog", 3));
//! assert_eq!(dog.measured().map(|(frame, _)| frame).collect::<Vec<_>>(), [1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_vision::bulk::names::Finder;
use dino_vision::unicode::nfc;

use crate::evaluate::files;

/// Extension of masks.
const MASKS: [&str; 1] = ["png"];

/// A video with masks of some of its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Its name.
    pub name: String,
    /// Its frames in order, at least one.
    pub frames: Vec<PathBuf>,
    /// The masks of frames by their number. The first frame has one.
    pub masks: BTreeMap<usize, PathBuf>,
}

impl Sequence {
    /// The masks that are measured with: not those of the first frame, which is given, and of the last.
    pub fn measured(&self) -> impl Iterator<Item = (usize, &Path)> {
        let last = self.masks.keys().next_back().copied();
        self.masks.iter().skip(1).filter(move |(frame, _)| Some(**frame) != last).map(|(frame, path)| (*frame, path.as_path()))
    }
}

/// The sequences below `root`, in DAVIS's order of the file `ImageSets/2017/SET.txt`, or by name.
///
/// # Errors
/// Where there is none, or one lacks the mask of its first frame.
pub fn list(root: &Path, set: &str) -> anyhow::Result<Vec<Sequence>> {
    let davis = root.join("JPEGImages/480p");
    if davis.is_dir() {
        let names = fs_err::read_to_string(root.join("ImageSets/2017").join(format!("{set}.txt")))?;
        let (masks, finder) = (root.join("Annotations/480p"), Finder::default());
        // Folders may have another Unicode form of the name than the list.
        let folder = |path: PathBuf| finder.find(&path).unwrap_or(path);
        let named = |name: &str| sequence(name, &folder(davis.join(name)), &folder(masks.join(name)));
        let sequences = names.lines().map(str::trim).filter(|name| !name.is_empty()).map(named).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!sequences.is_empty(), "{set}.txt of {} names no sequence", root.join("ImageSets/2017").display());
        return Ok(sequences);
    }
    let mut names: Vec<String> = Vec::new();
    for entry in fs_err::read_dir(root)? {
        let entry = entry?;
        if entry.path().join("frames").is_dir() {
            names.push(entry.file_name().into_string().ok().with_context(|| format!("{}: its name is not UTF-8", entry.path().display()))?);
        }
    }
    ensure!(
        !names.is_empty(),
        "{} holds no video: DAVIS has JPEGImages/480p, Annotations/480p and ImageSets/2017/{set}.txt; other videos are folders with frames and masks",
        root.display()
    );
    names.sort_unstable();
    names.iter().map(|name| sequence(name, &root.join(name).join("frames"), &root.join(name).join("masks"))).collect()
}

fn sequence(name: &str, frames: &Path, masks: &Path) -> anyhow::Result<Sequence> {
    // It becomes a folder of --out.
    ensure!(Path::new(name).file_name().is_some_and(|last| last == name), "{name:?} is no name of a sequence");
    let files = files::listed(frames, &files::PICTURES)?;
    ensure!(!files.is_empty(), "{} holds no frames ({})", frames.display(), files::PICTURES.join(", "));
    let mut by_stem: BTreeMap<OsString, PathBuf> =
        files::listed(masks, &MASKS)?.into_iter().filter_map(|mask| Some((mask.file_stem()?.to_owned(), mask))).collect();
    let mut masks_of: BTreeMap<usize, PathBuf> =
        files.iter().enumerate().filter_map(|(at, frame)| Some((at, by_stem.remove(frame.file_stem()?)?))).collect();
    // What is left may have another Unicode form of its frame's name.
    let composed = |stem: &OsStr| Some(nfc(stem.to_str()?).into_owned());
    let mut by_composed: BTreeMap<String, PathBuf> =
        by_stem.into_iter().filter_map(|(stem, mask)| Some((composed(&stem)?, mask))).collect();
    let mut found = 0;
    for (at, frame) in files.iter().enumerate() {
        let Entry::Vacant(place) = masks_of.entry(at) else { continue };
        if let Some(mask) = frame.file_stem().and_then(composed).and_then(|stem| by_composed.remove(&stem)) {
            place.insert(mask);
            found += 1;
        }
    }
    if found > 0 {
        tracing::warn!("found {found} masks of {} under another Unicode form of their frame's name", masks.display());
    }
    ensure!(
        masks_of.contains_key(&0),
        "{} has no mask in {}: the labels of the first frame are carried on",
        files[0].display(),
        masks.display()
    );
    Ok(Sequence { name: name.to_owned(), frames: files, masks: masks_of })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_found_under_either_form_of_their_frames_name() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: String| {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "").unwrap();
        };
        let (composed, decomposed) = ("T\u{fc}r", "Tu\u{308}r");
        for number in 0..3 {
            write(format!("one/frames/{composed} {number}.jpg"));
            write(format!("one/masks/{decomposed} {number}.png"));
        }
        // Both forms are there: each frame has its own.
        for form in [composed, decomposed] {
            write(format!("two/frames/{form}.jpg"));
            write(format!("two/masks/{form}.png"));
        }
        let [one, two]: [Sequence; 2] = list(root.path(), "val").unwrap().try_into().unwrap();
        assert_eq!((one.masks.len(), one.measured().count()), (3, 1));
        for (at, frame) in two.frames.iter().enumerate() {
            assert_eq!(two.masks[&at].file_stem(), frame.file_stem());
        }
        // A list in one form, folders in the other.
        for folder in ["JPEGImages", "Annotations"] {
            let end = if folder == "Annotations" { "png" } else { "jpg" };
            write(format!("{folder}/480p/{decomposed}/0.{end}"));
        }
        write("ImageSets/2017/val.txt".to_owned());
        fs_err::write(root.path().join("ImageSets/2017/val.txt"), composed).unwrap();
        assert_eq!(list(root.path(), "val").unwrap()[0].name, composed);
    }
}
