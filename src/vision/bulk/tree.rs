//! An `ImageFolder`: pictures in folders whose names are their classes.
//!
//! ```
//! use dino_vision::bulk::tree::list;
//!
//! let root = tempfile::tempdir()?;
//! std::fs::create_dir(root.path().join("cat"))?;
//! std::fs::write(root.path().join("cat/1.jpg"), "")?;
//! std::fs::write(root.path().join("photo.jpg"), "")?;
//!
//! let files = list(root.path())?.entries;
//! assert_eq!((files[0].id.as_str(), files[0].class.as_deref()), ("cat/1.jpg", Some("cat")));
//! assert_eq!((files[1].id.as_str(), files[1].class.as_deref()), ("photo.jpg", None));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

/// File name endings that are taken for pictures, as names without one are; what a file really is, its bytes say.
const ENDINGS: [&str; 9] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "jfif"];

/// A file that may be a picture; only its bytes can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// Its path below the root, with `/` between the parts: unique, and the same on every machine.
    pub id: String,
    /// Name of the folder directly below the root that it is in, at whatever depth; `None` for a file beside them.
    pub class: Option<String>,
}

/// A file that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What a tree holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Files, ordered by path.
    pub entries: Vec<Entry>,
    /// What looked like a file and cannot be one: dangling links, links in a loop, unreadable folders, names that are
    /// not text.
    pub skipped: Vec<Skipped>,
}

/// Lists every file below `root`. Links are followed. Names that start with a dot are left out without a word.
///
/// # Errors
/// Where `root` is no folder that can be read.
pub fn list(root: &Path) -> std::io::Result<Listing> {
    // The walk below would report this too, as one more entry that is skipped.
    fs_err::read_dir(root)?;
    let mut listing = Listing::default();
    let hidden = |entry: &DirEntry| entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(|entry| !hidden(entry)) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {}
            // Reading a pipe would wait forever.
            Ok(entry) if !entry.file_type().is_file() => listing.skip(entry.path(), "no regular file"),
            Ok(entry) => match parts(root, entry.path()) {
                Some(parts) => listing.entries.push(Entry {
                    path: entry.path().to_owned(),
                    id: parts.join("/"),
                    class: (parts.len() > 1).then(|| parts[0].to_owned()),
                }),
                None => listing.skip(entry.path(), "its name is not UTF-8"),
            },
            Err(error) => {
                let path = error.path().unwrap_or(root).to_owned();
                let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                let reason = match (error.loop_ancestor(), error.io_error()) {
                    (Some(ancestor), _) => format!("a link back to {}", ancestor.display()),
                    (None, Some(io)) if io.kind() == std::io::ErrorKind::NotFound => "a dangling link".to_owned(),
                    (None, Some(io)) => io.to_string(),
                    (None, None) => error.to_string(),
                };
                if !hidden {
                    listing.skip(&path, reason);
                }
            }
        }
    }
    Ok(listing)
}

impl Listing {
    fn skip(&mut self, path: &Path, reason: impl Into<String>) {
        self.skipped.push(Skipped { path: path.to_owned(), reason: reason.into() });
    }
}

/// Whether a name ends as those of pictures do, or has no ending.
pub fn is_named_as_picture(path: &Path) -> bool {
    path.extension().is_none_or(|ending| ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// The first folder of a path with `/` between its parts.
pub fn uppermost(path: &str) -> Option<&str> {
    path.trim_start_matches("./").trim_start_matches('/').split_once('/').map(|(folder, _)| folder)
}

/// The parts of `path` below `root`, if they are text.
fn parts<'a>(root: &Path, path: &'a Path) -> Option<Vec<&'a str>> {
    let below = path.strip_prefix(root).ok()?;
    below.components().map(|part| part.as_os_str().to_str()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn classes_are_the_top_folders_and_links_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("tree");
        for file in ["b/x.jpg/2.jpg", "b/1.jpg", "a b.c/deep/er/3.PNG", "loose.png", "b/.hidden.jpg", ".git/4.jpg"] {
            let path = root.join(file);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, file).unwrap();
        }
        symlink("..", root.join("b/loop")).unwrap();
        symlink("nowhere", root.join("b/dangling.jpg")).unwrap();
        symlink("1.jpg", root.join("b/same.jpg")).unwrap();

        let listing = list(&root).unwrap();
        let found: Vec<_> = listing.entries.iter().map(|entry| (entry.id.as_str(), entry.class.as_deref())).collect();
        assert_eq!(
            found,
            [
                ("a b.c/deep/er/3.PNG", Some("a b.c")),
                ("b/1.jpg", Some("b")),
                ("b/same.jpg", Some("b")),
                ("b/x.jpg/2.jpg", Some("b")),
                ("loose.png", None),
            ]
        );
        let skipped: Vec<_> = listing.skipped.iter().map(|skipped| skipped.path.strip_prefix(&root).unwrap()).collect();
        assert_eq!(skipped, [Path::new("b/dangling.jpg"), Path::new("b/loop")]);
        assert!(list(&root.join("loose.png")).is_err() && list(&root.join("none")).is_err());
    }
}
