//! Pictures and their masks.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::{self, tree};

use crate::cli::segment_eval::mask_of;
use crate::evaluate::files::is_picture;

/// A picture and its mask.
pub(super) struct Pair {
    pub(super) picture: PathBuf,
    pub(super) mask: PathBuf,
}

/// Every picture below `images` with its mask below `masks`. What is no picture is left out, and so are masks beside their pictures.
///
/// # Errors
/// Where a folder cannot be read, there is no picture, or a picture has no mask.
pub(super) fn list(images: &Path, masks: &Path) -> Result<Vec<Pair>> {
    ensure!(masks.is_dir(), "--masks {}: there is no such folder", masks.display());
    let finder = Finder::default();
    let of = |picture: PathBuf| {
        let mask = mask_of(&picture, images, masks, &finder).filter(|mask| *mask != picture);
        (picture, mask)
    };
    let found: Vec<(PathBuf, Option<PathBuf>)> = tree::list(images)?.entries.into_iter().map(|entry| of(entry.path)).collect();
    let known: BTreeSet<PathBuf> = found.iter().filter_map(|(_, mask)| mask.clone()).collect();
    let (mut pairs, mut without) = (Vec::new(), Vec::new());
    for (picture, mask) in found {
        match mask {
            _ if known.contains(&picture) => {}
            Some(mask) => pairs.push(Pair { picture, mask }),
            None if is_picture(&picture) => without.push(picture),
            None => tracing::warn!("skipped {}: it is no picture", picture.display()),
        }
    }
    if let Some(first) = without.first() {
        bail!(
            "{} of {} pictures of {} have no mask in {}, the first: {}; masks are named as their picture, NAME.png or NAME_mask.png",
            without.len(),
            without.len() + pairs.len(),
            images.display(),
            masks.display(),
            first.display()
        );
    }
    ensure!(!pairs.is_empty(), "{} holds no picture", images.display());
    Ok(pairs)
}

/// Refuses a mask that two different pictures would learn from or be measured by: folders that use the same names.
///
/// # Errors
/// Names the first such mask.
pub(super) fn check_masks(train: &[Pair], val: &[Pair]) -> Result<()> {
    let mut pictures: HashMap<&Path, &Path> = HashMap::new();
    for Pair { picture, mask } in train.iter().chain(val) {
        let first = *pictures.entry(mask).or_insert(picture);
        ensure!(
            first == picture || is_same_file(first, picture),
            "{} is the mask of two different pictures, {} and {}: give the masks of --val apart, with --val-masks DIR, or give pictures \
             different names",
            mask.display(),
            first.display(),
            picture.display()
        );
    }
    Ok(())
}

/// Whether both have the same bytes. What cannot be read is skipped with a warning later.
fn is_same_file(a: &Path, b: &Path) -> bool {
    match (bulk::read(a), bulk::read(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => true,
    }
}
