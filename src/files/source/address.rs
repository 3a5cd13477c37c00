//! Addresses of files: paths, `file://`, and URLs of the web.
//!
//! ```
//! use std::path::Path;
//!
//! use dino_server::files::source::address::Address;
//!
//! let folder = Path::new("/photos");
//! assert_eq!(Address::parse("cat/1.jpg", folder)?, Address::File("/photos/cat/1.jpg".into()));
//! assert_eq!(Address::parse("file:///a%20b.jpg", folder)?, Address::File("/a b.jpg".into()));
//! assert!(Address::parse("https://example.org/1.jpg", folder)?.is_remote());
//! assert!(Address::parse("ftp://example.org/1.jpg", folder).is_err());
//! # Ok::<(), String>(())
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dino_vision::bulk;
use percent_encoding::percent_decode_str;

use super::packed::Local;
use super::{Error, joined, web};

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On this machine.
    File(PathBuf),
    /// Behind an `http://` or `https://` URL.
    Web(String),
}

/// A URL without what follows its path, so that its ending can be seen. A `?` in the name of a file is left alone.
pub(super) fn without_query(text: &str) -> &str {
    if is_web(text) { text.split(['?', '#']).next().unwrap_or(text) } else { text }
}

fn is_web(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

impl Address {
    /// Reads a path, which begins at `folder` unless it is absolute, or a URL.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("file", path)) => {
                let path = path.strip_prefix("localhost").unwrap_or(path);
                let decoded = percent_decode_str(path).decode_utf8().map_err(|_| format!("{text} is not UTF-8"))?;
                if !decoded.starts_with('/') {
                    return Err(format!("{text} has to name a whole path: file:///folder/picture.jpg"));
                }
                Ok(Self::File(PathBuf::from(decoded.into_owned())))
            }
            Some(("http" | "https", _)) => Ok(Self::Web(text.to_owned())),
            Some((scheme, _))
                if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) =>
            {
                Err(format!("{text}: addresses begin with file://, http:// or https://"))
            }
            _ => Ok(Self::File(joined(folder, text))),
        }
    }

    /// Whether it is behind a network.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Web(_))
    }

    /// Its path, whose ending says what it is.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Web(url) => Path::new(without_query(url)),
        }
    }

    /// The folder that relative paths in this file begin at.
    pub(super) fn folder(&self) -> PathBuf {
        match self {
            Self::File(path) => path.parent().unwrap_or(Path::new("")).to_owned(),
            Self::Web(_) => PathBuf::new(),
        }
    }

    /// The bytes of a picture.
    ///
    /// # Errors
    /// Before memory is spent, [`bulk::Error::TooLarge`].
    pub fn read(&self) -> Result<Vec<u8>, bulk::Error> {
        match self {
            Self::File(path) => bulk::read(path),
            Self::Web(url) => web::read(url),
        }
    }

    /// What changes when the file does; nothing for a URL, which would have to be asked.
    pub(super) fn stamp(&self) -> String {
        match self {
            Self::File(path) => {
                // A file that cannot be asked cannot be read either, and is skipped then.
                let data = fs_err::metadata(path).ok();
                let size = data.as_ref().map(std::fs::Metadata::len);
                let modified = data.and_then(|data| data.modified().ok());
                format!("{size:?}\0{modified:?}")
            }
            Self::Web(_) => String::new(),
        }
    }

    /// The file on this machine; one that is elsewhere is fetched into a temporary file.
    ///
    /// # Errors
    /// [`Error::Storage`] where it cannot be fetched.
    pub(super) fn local(&self) -> Result<Arc<Local>, Error> {
        let shown = self.to_string();
        Ok(Arc::new(match self {
            Self::File(path) => Local { path: path.clone(), shown, temporary: None },
            Self::Web(url) => {
                let file = web::fetch(url)?;
                Local { path: file.to_path_buf(), shown, temporary: Some(file) }
            }
        }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "{}", path.display()),
            // What follows may be a signature.
            Self::Web(url) => formatter.write_str(url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_or_urls() {
        let parse = |text: &str| Address::parse(text, Path::new("root"));
        assert_eq!(parse("a/b?c.jpg"), Ok(Address::File("root/a/b?c.jpg".into())));
        assert_eq!(parse("/a.jpg"), Ok(Address::File("/a.jpg".into())));
        assert_eq!(parse("file:///a%20b.jpg"), Ok(Address::File("/a b.jpg".into())));
        assert_eq!(parse("odd name://x.jpg"), Ok(Address::File("root/odd name://x.jpg".into())));
        assert!(parse("file://host/a").unwrap_err().contains("whole path") && parse("ftp://x/y").unwrap_err().contains("begin with"));
        assert_eq!(parse("https://x/y.tar?z=.jpg").unwrap().path(), Path::new("https://x/y.tar"));
    }
}
