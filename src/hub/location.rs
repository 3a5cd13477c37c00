//! What a flag names a model by.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, Hub, Name, SCHEME, Settings, Want};

/// A model or a checkpoint: on this machine, or on a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or a folder.
    Path(PathBuf),
    /// A name on a hub.
    Hub(Name),
}

/// A model or a checkpoint that is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file or the folder.
    pub path: PathBuf,
    /// Its name at the commit that it is of, where it came from a hub.
    pub name: Option<Name>,
}

impl Location {
    /// What `text` means: names of hubs begin with `hf://`, everything else is a path.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn of(text: OsString) -> Result<Self, Error> {
        match text.to_str().filter(|text| Name::is_meant(text)) {
            Some(name) => Ok(Self::Hub(name.parse()?)),
            None => Ok(Self::Path(text.into())),
        }
    }

    /// Where it is on this machine; from a hub, which the environment names, it is fetched first. The log says from which commit, and,
    /// the first time, under which licence. Blocks meanwhile.
    ///
    /// # Errors
    /// [`Error`]; for a path only [`Error::NoSuchPath`].
    pub fn fetch(&self, want: &Want) -> Result<Found, Error> {
        let name = match self {
            Self::Path(path) => {
                return match without_scheme(path) {
                    Some(path) => Err(Error::NoSuchPath { path }),
                    None => Ok(Found { path: path.clone(), name: None }),
                };
            }
            Self::Hub(name) => name,
        };
        let fetched = Hub::new(Settings::from_env()?)?.fetch(name, want)?;
        tracing::info!("{} is in {}", fetched.name, fetched.path.display());
        if let Some(licence) = &fetched.licence {
            tracing::info!("licence of {}: {licence}", name.repository());
        }
        Ok(Found { path: fetched.path, name: Some(fetched.name) })
    }
}

/// A path to nothing that would be OWNER/NAME on a hub with `hf://` before it. A link to a file that is gone is no such path.
fn without_scheme(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let name: Name = format!("{SCHEME}{text}").parse().ok()?;
    (name.file().is_none() && path.symlink_metadata().is_err()).then(|| text.to_owned())
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Hub(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Location, without_scheme};

    #[test]
    fn only_names_of_hubs_are_none_of_paths() {
        let of = |text: &str| Location::of(text.into()).map(|location| location.to_string());
        assert_eq!(of("hf://o/n@v1").unwrap(), "hf://o/n@v1");
        for path in ["models/demo", "hf:/x", "/hf://o/n", "https://x/y"] {
            assert!(matches!(Location::of(path.into()), Ok(Location::Path(_))), "{path}");
        }
        assert!(of("hf://o").is_err());
    }

    #[test]
    fn only_a_path_to_nothing_may_be_a_name() {
        assert_eq!(without_scheme("facebook/dinov2-small@main".as_ref()).as_deref(), Some("facebook/dinov2-small@main"));
        // A folder of this crate, paths of other lengths, and others that no hub has.
        for path in ["tests/fetch.rs", "none", "o/n/file.pth", "/o/n", "./o/n", "../o/n"] {
            assert_eq!(without_scheme(path.as_ref()), None, "{path}");
        }
    }
}
