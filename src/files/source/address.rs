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

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dino_vision::bulk;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::packed::Local;
#[cfg(feature = "object-store")]
use super::refused;
use super::{Error, joined, web};
#[cfg(feature = "object-store")]
use crate::files::objects::Place;

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On this machine.
    File(PathBuf),
    /// Behind an `http://` or `https://` URL.
    Web(String),
    /// In an object storage.
    #[cfg(feature = "object-store")]
    Object(Place),
}

/// A URL without what follows its path, so that its ending can be seen. A `?` in the name of a file is left alone.
pub(super) fn without_query(text: &str) -> &str {
    if is_web(text) { text.split(['?', '#']).next().unwrap_or(text) } else { text }
}

fn is_web(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// An address as it is shown and stored: without user and password, and of the web without its query, which may be a signature.
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    let text = without_query(text);
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let host = rest.split('/').next().unwrap_or(rest);
    match host.rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]).into(),
        None => text.into(),
    }
}

/// What a path is not written with in a URL.
const IN_PATH: AsciiSet = CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// Where the relative paths in a list or manifest begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// A folder of this machine.
    Folder(PathBuf),
    /// The URL of the list's folder, with a `/` at its end.
    Url(String),
}

impl Base {
    /// Reads an entry: a URL, or a path, which begins here.
    ///
    /// # Errors
    /// Says what is wrong with it. Lists from elsewhere name no files of this machine.
    pub(super) fn address(&self, text: &str) -> Result<Address, String> {
        let base = match self {
            Self::Folder(folder) => return Address::parse(text, folder),
            Self::Url(base) => base,
        };
        let is_path = |address: &Address| matches!(address, Address::File(_));
        if text.starts_with('/') || text.starts_with("file://") {
            return Err(format!("{text}: a list that is behind a URL cannot name files of this machine"));
        }
        let address = Address::parse(text, Path::new(""))?;
        if !is_path(&address) {
            return Ok(address);
        }
        let joined = if is_web(base) { format!("{base}{}", utf8_percent_encode(text, &IN_PATH)) } else { format!("{base}{text}") };
        Address::parse(&joined, Path::new(""))
    }
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
            #[cfg(feature = "object-store")]
            Some(_) if Place::is_url(text) => Place::parse(text).map(Self::Object),
            #[cfg(not(feature = "object-store"))]
            Some(("s3" | "s3a" | "gs" | "az" | "azure" | "adl" | "abfs" | "abfss", _)) => {
                Err(format!("{text}: {}", crate::files::NO_OBJECTS))
            }
            Some((scheme, _))
                if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) =>
            {
                Err(format!("{text}: addresses begin with file://, http://, https://, s3://, gs:// or az://"))
            }
            _ => Ok(Self::File(joined(folder, text))),
        }
    }

    /// Whether it is behind a network.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::File(_))
    }

    /// Its path, whose ending says what it is.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Web(url) => Path::new(without_query(url)),
            #[cfg(feature = "object-store")]
            Self::Object(place) => Path::new(place.url()),
        }
    }

    /// Where relative paths in this file begin.
    pub(super) fn base(&self) -> Base {
        let folder = |url: &str| Base::Url(url.rfind('/').map_or(url, |slash| &url[..=slash]).to_owned());
        match self {
            Self::File(path) => Base::Folder(path.parent().unwrap_or(Path::new("")).to_owned()),
            Self::Web(url) => folder(without_query(url)),
            #[cfg(feature = "object-store")]
            Self::Object(place) => folder(place.url()),
        }
    }

    /// All of it, also what is not shown: for hashes that change with the address.
    pub(super) fn whole(&self) -> String {
        if let Self::Web(url) = self { url.clone() } else { self.to_string() }
    }

    /// What changes when a file does that is read from its beginning to its end: as [`Address::stamp`], and a URL is asked. One that has no
    /// version gets another answer each time, so that parts of one version never follow those of another.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub(super) fn version(&self) -> Result<String, Error> {
        match self {
            Self::File(_) => self.stamp(),
            Self::Web(url) => Ok(web::version(url)?.unwrap_or_else(|| format!("{:?}", std::time::SystemTime::now()))),
            #[cfg(feature = "object-store")]
            Self::Object(place) => place.stamp().map_err(|error| Error::Storage(format!("{self}: {error}"))),
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
            #[cfg(feature = "object-store")]
            Self::Object(place) => match place.read(bulk::MAX_FILE) {
                Ok(Ok(bytes)) => {
                    refused::note_read(place);
                    Ok(bytes.into())
                }
                Ok(Err(size)) => Err(bulk::Error::TooLarge { size }),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(bulk::Error::NotThere("there is no such object".to_owned()))
                }
                Err(error) if refused::is_alone(place, &error) => {
                    Err(bulk::Error::Refused(format!("the storage refuses this object, and gives others: {error}")))
                }
                Err(error) => Err(bulk::Error::Storage(error.to_string())),
            },
        }
    }

    /// What changes when the file does; nothing for a URL, which would have to be asked, and for what does not exist or is refused alone.
    ///
    /// # Errors
    /// [`Error::Storage`].
    #[cfg_attr(not(feature = "object-store"), expect(clippy::unnecessary_wraps, reason = "only object storage is asked"))]
    pub(super) fn stamp(&self) -> Result<String, Error> {
        match self {
            Self::File(path) => {
                // A file that cannot be asked cannot be read either, and is skipped then.
                let data = fs_err::metadata(path).ok();
                let size = data.as_ref().map(std::fs::Metadata::len);
                let modified = data.and_then(|data| data.modified().ok());
                Ok(format!("{size:?}\0{modified:?}"))
            }
            Self::Web(_) => Ok(String::new()),
            #[cfg(feature = "object-store")]
            Self::Object(place) => match place.stamp() {
                // One failure among others, when it is read.
                Err(error) if refused::is_alone(place, &error) => Ok(String::new()),
                stamp => stamp.map_err(|error| Error::Storage(format!("{self}: {error}"))),
            },
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
            #[cfg(feature = "object-store")]
            Self::Object(place) => {
                let file = place.fetch().map_err(|error| Error::Storage(format!("{shown}: {error}")))?;
                Local { path: file.to_path_buf(), shown, temporary: Some(file) }
            }
        }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Web(url) => formatter.write_str(&without_secrets(url)),
            #[cfg(feature = "object-store")]
            Self::Object(place) => formatter.write_str(place.url()),
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
        assert_eq!(parse("https://user:pass@x/y@z.jpg?signature=1#a").unwrap().to_string(), "https://x/y@z.jpg");
    }

    #[test]
    fn lists_from_elsewhere_name_files_beside_them() {
        let base = Address::Web("https://u:p@x/lists/m.csv?signature=1".to_owned()).base();
        assert_eq!(base.address("img/a b.jpg"), Ok(Address::Web("https://u:p@x/lists/img/a%20b.jpg".to_owned())));
        assert_eq!(base.address("https://y/1.jpg"), Ok(Address::Web("https://y/1.jpg".to_owned())));
        for local in ["/etc/passwd", "file:///etc/passwd"] {
            assert!(base.address(local).unwrap_err().contains("cannot name files of this machine"), "{local}");
        }
        let base = Address::File("lists/m.csv".into()).base();
        assert_eq!(base.address("img/1.jpg"), Ok(Address::File("lists/img/1.jpg".into())));
        #[cfg(feature = "object-store")]
        {
            let base = Address::parse("s3://bucket/lists/m.csv", Path::new("")).unwrap().base();
            assert_eq!(base.address("img/1.jpg").unwrap().to_string(), "s3://bucket/lists/img/1.jpg");
        }
    }
}
