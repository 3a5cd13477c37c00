//! The report of `duplicates`: the near-copies of a folder, as JSON or as a page.
//!
//! ```
//! use dino_server::files::duplicates::{File, Group, Report, Target};
//! use dino_vision::duplicates::Kind;
//!
//! let file = |path: &str, width, height| File {
//!     path: path.into(), width, height, bytes: 9000, similarity: None, same_pixels: true, copy_of: None,
//! };
//! let items = vec![file("cat.png", 640, 480), file("small/cat.jpg", 320, 240)];
//! let groups = vec![Group { kind: Kind::Copy, lowest_similarity: None, items }];
//! let report =
//!     Report { images: "photos".into(), pictures: 9, flat: 0, model: None, min_similarity: None, groups, skipped: Vec::new() };
//! assert_eq!(report.count(Kind::Copy), (1, 2));
//!
//! let folder = tempfile::tempdir()?;
//! let page = Target::Html(folder.path().join("report.html"));
//! report.write(&page, |_| None)?;
//! assert!(std::fs::read_to_string(page.path())?.contains("small/cat.jpg"));
//! # Ok::<(), std::io::Error>(())
//! ```

mod html;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use dino_vision::duplicates::Kind;
use serde::Serialize;

use super::storage::write_whole;

/// Where a report goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A JSON file.
    Json(PathBuf),
    /// A page that needs nothing from outside.
    Html(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => Ok(Self::Json(path)),
            Some("html") => Ok(Self::Html(path)),
            _ => Err("the name has to end in .json or .html".to_owned()),
        }
    }
}

impl Target {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Json(path) | Self::Html(path) => path,
        }
    }
}

/// What a folder holds more than once.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The folder.
    pub images: String,
    /// Pictures that were read.
    pub pictures: usize,
    /// Pictures with so little in them that copies of the same bytes alone are known.
    pub flat: usize,
    /// Fingerprint of the model; without one, pixels alone were compared.
    pub model: Option<String>,
    /// The least cosine of two pictures of one scene.
    pub min_similarity: Option<f32>,
    /// Groups in the order of the paths of their first files.
    pub groups: Vec<Group>,
    /// Files that could not be read.
    pub skipped: Vec<SkippedFile>,
}

/// Pictures that are connected.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// `copy`: all have the same pixels. `similar`: they look alike.
    pub kind: Kind,
    /// The least similarity of one to the first.
    pub lowest_similarity: Option<f32>,
    /// The first has the most pixels; the others follow by similarity to it.
    pub items: Vec<File>,
}

/// A picture of a group.
#[derive(Clone, Debug, Serialize)]
pub struct File {
    /// Its path below the folder.
    pub path: String,
    /// In pixels, upright.
    pub width: u32,
    /// In pixels, upright.
    pub height: u32,
    /// Size of the file.
    pub bytes: u64,
    /// Cosine with the first of the group.
    pub similarity: Option<f32>,
    /// Whether it has the same pixels as the first.
    pub same_pixels: bool,
    /// Path of the largest picture with the same pixels, where that is another one.
    pub copy_of: Option<String>,
}

/// A file that could not be read.
#[derive(Clone, Debug, Serialize)]
pub struct SkippedFile {
    /// Its path.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Report {
    /// Number of groups of a kind, and of their files.
    pub fn count(&self, kind: Kind) -> (usize, usize) {
        let groups = self.groups.iter().filter(|group| group.kind == kind);
        groups.fold((0, 0), |(groups, files), group| (groups + 1, files + group.items.len()))
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// None that is expected.
    pub fn json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Writes the report to a file, which is whole or not there. `thumbnail` gives a small JPEG of the picture at a path, for the page.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, target: &Target, thumbnail: impl Fn(&str) -> Option<Vec<u8>>) -> std::io::Result<()> {
        let bytes = match target {
            Target::Json(_) => self.json()?,
            Target::Html(_) => html::page(self, thumbnail).into_bytes(),
        };
        write_whole(target.path(), &bytes)
    }
}
