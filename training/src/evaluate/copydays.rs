//! Copy detection on Copydays (Douze et al. 2009): originals that have to be found by their copies.
//!
//! ```
//! use dino_train::evaluate::copydays::blocks;
//! use ndarray::array;
//!
//! let root = tempfile::tempdir()?;
//! for (folder, name) in [("original", "200000.jpg"), ("original", "200100.jpg"), ("strong", "200101.jpg")] {
//!     std::fs::create_dir_all(root.path().join(folder))?;
//!     std::fs::write(root.path().join(folder).join(name), "")?;
//! }
//! let strong = blocks(root.path())?.remove(1);
//! assert_eq!((strong.name.as_str(), strong.files.len()), ("strong", 1));
//!
//! // Its one copy is nearer to its original, the second, than to the first.
//! let originals = array![[1.0, 0.0], [0.0, 1.0]];
//! assert_eq!(strong.mean_average_precision(array![[0.1, 0.9]].view(), originals.view()), 1.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use ndarray::{Array2, ArrayView2, Axis};

use super::files;
use super::ranking::{average_precision, order, places};

/// Folder of the originals, and of the copies that were made by hand.
const ORIGINAL: &str = "original";
const STRONG: &str = "strong";
/// Originals among which an answer counts.
const MOST: usize = 20;
/// Names of originals and of their strong copies begin with the same letters.
const PREFIX: usize = 4;

/// Folders of copies.
fn names() -> impl Iterator<Item = String> {
    let qualities = [3, 5, 8, 10, 15, 20, 30, 50, 75].map(|quality| format!("jpegqual/{quality}"));
    let crops = [10, 15, 20, 30, 40, 50, 60, 70, 80].map(|percent| format!("crops/{percent}"));
    [ORIGINAL.to_owned(), STRONG.to_owned()].into_iter().chain(qualities).chain(crops)
}

/// Copies of one kind.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its folder: `original`, `strong`, `jpegqual/N` or `crops/N`.
    pub name: String,
    /// Pictures.
    pub files: Vec<PathBuf>,
    /// The originals that each shows, by number.
    originals: Vec<HashSet<usize>>,
}

/// The folders that are there, originals first.
///
/// # Errors
/// Where originals are missing, or copies do not belong to them.
pub fn blocks(root: &Path) -> anyhow::Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    for name in names() {
        let folder = root.join(&name);
        if !folder.is_dir() {
            ensure!(
                name != ORIGINAL,
                "{} has no folder {ORIGINAL}: Copydays has {ORIGINAL}, {STRONG}, jpegqual/N and crops/N",
                root.display()
            );
            continue;
        }
        let files = files::listed(&folder, &files::PICTURES)?;
        ensure!(!files.is_empty(), "{} holds no pictures", folder.display());
        let all = blocks.first().map_or(&files, |block| &block.files);
        let originals = if name == STRONG {
            let prefix = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().chars().take(PREFIX).collect::<String>();
            let prefixes: Vec<String> = all.iter().map(|file| prefix(file)).collect();
            let of = |file: &PathBuf| (0..all.len()).filter(|at| prefixes[*at] == prefix(file)).collect::<HashSet<usize>>();
            let originals: Vec<HashSet<usize>> = files.iter().map(of).collect();
            if let Some(at) = originals.iter().position(HashSet::is_empty) {
                anyhow::bail!("{} is the copy of no original: the first {PREFIX} letters of their names are the same", files[at].display());
            }
            originals
        } else {
            ensure!(
                files.len() == all.len(),
                "{} holds {} pictures, and there are {} originals: each has one copy, in the order of their names",
                folder.display(),
                files.len(),
                all.len()
            );
            (0..files.len()).map(|at| HashSet::from([at])).collect()
        };
        blocks.push(Block { name, files, originals });
    }
    ensure!(blocks.len() > 1, "{} has no copies beside {ORIGINAL}: {STRONG}, jpegqual/N, crops/N", root.display());
    Ok(blocks)
}

impl Block {
    /// Mean average precision, between 0 and 1, of the features `[copies, dim]` among those of the originals and what distracts from them
    /// `[n, dim]`; rows have length 1.
    pub fn mean_average_precision(&self, copies: ArrayView2<'_, f32>, database: ArrayView2<'_, f32>) -> f64 {
        let similarities: Array2<f32> = copies.dot(&database.t());
        let of = |(row, originals): (ndarray::ArrayView1<'_, f32>, &HashSet<usize>)| {
            average_precision(&places(&order(row, MOST), originals, &HashSet::new()), originals.len())
        };
        similarities.axis_iter(Axis(0)).zip(&self.originals).map(of).sum::<f64>() / self.originals.len() as f64
    }
}
