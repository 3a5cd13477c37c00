//! The pictures of a folder, in the order of their names.
//!
//! ```
//! use dino_train::evaluate::files::{PICTURES, listed};
//!
//! let folder = tempfile::tempdir()?;
//! for name in ["2.png", "1.jpg", "notes.txt"] {
//!     std::fs::write(folder.path().join(name), "")?;
//! }
//! assert_eq!(listed(folder.path(), &PICTURES)?, [folder.path().join("1.jpg"), folder.path().join("2.png")]);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::path::{Path, PathBuf};

use dino_vision::bulk;
use dino_vision::media::Format;

/// Extensions of the files that are taken for pictures where others may lie beside them.
pub const PICTURES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// The files directly in a folder with one of these extensions, by name. Names that begin with a dot are left out.
///
/// # Errors
/// Where it cannot be read.
pub fn listed(folder: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let is_wanted = path.extension().is_some_and(|end| extensions.iter().any(|extension| end.eq_ignore_ascii_case(extension)));
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if is_wanted && !is_hidden {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Whether the file begins as pictures do, whatever its name.
pub fn is_picture(path: &Path) -> bool {
    bulk::read(path).is_ok_and(|bytes| Format::sniff(&bytes).is_ok())
}
