//! Files that hold many pictures: tar, Parquet and Arrow.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dino_vision::bulk::samples::{self, Samples};
use dino_vision::bulk::{BATCH, compressed, names, shards};
use dino_vision::unicode::nfc;
use tempfile::TempPath;

use super::address::{Address, without_query, without_secrets};
use super::{Batch, Batches, Columns, Error, Failure, Found, Listing, Picture, Place, Unit, is_compressed};
use crate::files::shard::Shard;

/// What a build without the feature `parquet` answers to a file of rows.
pub(super) const NO_ROWS: &str = "this program was built without its feature `parquet`, which reads Parquet and Arrow files (`make serve` leaves \
                                  it out), and which `cargo build --release` includes";

/// What a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Tar,
    Parquet,
    Arrow,
}

impl Kind {
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "tar" => Some(Self::Tar),
            "parquet" => Some(Self::Parquet),
            "arrow" | "arrows" | "ipc" | "feather" => Some(Self::Arrow),
            _ => None,
        }
    }

    /// Whether this build reads it.
    pub(super) fn is_readable(self) -> bool {
        self == Self::Tar || cfg!(feature = "parquet")
    }
}

/// A file that holds many pictures.
#[derive(Debug)]
pub(super) struct Packed {
    /// What the ids of its pictures begin with.
    pub(super) id: String,
    pub(super) address: Address,
    pub(super) kind: Kind,
}

/// A file on this machine.
#[derive(Debug)]
pub struct Local {
    pub(super) path: PathBuf,
    /// Where it came from, for messages.
    pub(super) shown: String,
    /// Deletes it when the last picture of it was read.
    #[expect(dead_code, reason = "for what happens when it is dropped")]
    pub(super) temporary: Option<TempPath>,
}

/// The files that a path, a URL or a pattern of them stands for. Ids begin behind the folder before the first `{`; `composed` says up to which
/// length they are composed.
pub(super) fn pattern(text: &str, composed: Option<usize>) -> Result<Listing, Error> {
    let path = without_query(text);
    let before = path.split('{').next().unwrap_or(path);
    if text[path.len()..].contains('{') {
        return Err(Error::Wrong(format!("{}: a range in braces has to stand in the path, not behind it", without_secrets(text))));
    }
    let folder = before.rfind('/').map_or(0, |slash| slash + 1);
    let mut listing = Listing::default();
    for file in shards::expand(text).map_err(Error::Wrong)? {
        let text = file.display().to_string();
        let address = Address::parse(&text, Path::new("")).map_err(Error::Wrong)?;
        // A shard that is not there is rather a mistake in the pattern than damage.
        if let Address::File(path) = &address {
            fs_err::metadata(path)?;
        }
        let kind = Kind::of(address.path()).ok_or_else(|| Error::Wrong(format!("{address} is no .tar, .parquet or .arrow file")))?;
        let id = &without_query(&text)[folder..];
        let id = composed.map_or_else(|| id.to_owned(), |longest| names::ids(&[id], longest).into_iter().collect());
        listing.found.push(Found::Packed(Packed { id, address, kind }));
    }
    Ok(listing)
}

/// A packed file, or a part of its pictures.
pub(super) struct PackedUnit {
    pub(super) file: Packed,
    /// Which of its pictures.
    pub(super) part: Shard,
    pub(super) columns: Columns,
    /// Up to which length names of members are composed.
    pub(super) composed: Option<usize>,
}

impl Unit for PackedUnit {
    fn stamp(&self) -> Result<String, Error> {
        let Packed { id, address, .. } = &self.file;
        let composed = self.composed.map_or_else(String::new, |longest| format!("\0{longest}"));
        Ok(format!("{id}\0{}\0{}\0{}\0{:?}{composed}", address.whole(), address.version()?, self.part, self.columns))
    }

    fn count(&self) -> Option<usize> {
        None
    }

    fn batches(&self) -> Result<Batches<'_>, Error> {
        let batches = match self.open() {
            Ok(batches) => batches,
            Err(error @ (Error::Storage(_) | Error::Column { .. })) => return Err(error),
            Err(error) => Box::new(std::iter::once(self.failed(error.to_string()))),
        };
        let part = self.part;
        Ok(Box::new(batches.map(move |mut batch| {
            batch.pictures.retain(|picture| part.holds(&picture.id));
            batch.failures.retain(|failure| part.holds(&failure.id));
            batch
        })))
    }
}

impl PackedUnit {
    fn failed(&self, reason: String) -> Batch {
        let failure = Failure { id: self.file.id.clone(), path: self.file.address.to_string(), reason };
        Batch { pictures: Vec::new(), failures: vec![failure] }
    }

    fn open(&self) -> Result<Batches<'_>, Error> {
        let local = self.file.address.local()?;
        match self.file.kind {
            Kind::Tar => self.members(local),
            #[cfg(feature = "parquet")]
            kind => super::rows::batches(&local, &self.file.id, kind == Kind::Parquet, &self.columns),
            #[cfg(not(feature = "parquet"))]
            _ => Err(Error::Wrong(NO_ROWS.to_owned())),
        }
    }

    fn members(&self, shard: Arc<Local>) -> Result<Batches<'_>, Error> {
        if let Some(kind) = compressed::by_content(&shard.path)? {
            return Err(Error::Wrong(is_compressed("it", kind)));
        }
        let Samples { found, damage } = samples::of(&shard.path)?;
        let (prefix, composed) = (&self.file.id, self.composed);
        let members: Vec<&str> = found.iter().map(|sample| sample.member.name.as_str()).collect();
        let members: Vec<String> = match composed {
            Some(longest) => names::ids(&members, longest.saturating_sub(prefix.len() + 1)).into_iter().map(Cow::into_owned).collect(),
            None => members.into_iter().map(str::to_owned).collect(),
        };
        let picture = move |(name, sample): (String, samples::Sample)| {
            let class = sample.class(&shard.path).map(|class| if composed.is_some() { nfc(&class).into_owned() } else { class });
            Picture {
                id: format!("{prefix}/{name}"),
                labels: class.into_iter().collect(),
                place: Place::Member { shard: Arc::clone(&shard), member: sample.member },
            }
        };
        let mut pictures = members.into_iter().zip(found).map(picture);
        let batches = std::iter::from_fn(move || {
            let pictures: Vec<Picture> = pictures.by_ref().take(BATCH).collect();
            (!pictures.is_empty()).then_some(Batch { pictures, failures: Vec::new() })
        });
        Ok(Box::new(batches.chain(damage.map(|damage| self.failed(format!("it {damage}"))))))
    }
}
