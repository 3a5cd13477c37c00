//! Where the pictures of bulk commands come from: folders, tar shards, lists, manifests, Parquet and Arrow files.
//!
//! A [`Source`] is a list of [`Unit`]s in a fixed order. A unit is read from its beginning to its end and gives its pictures in
//! [`Batch`]es, so that memory holds one batch whatever the size of the source. The bytes of a picture are read when a worker asks
//! for them ([`Place::read`]), after their number was compared with the limit.
//!
//! ```
//! use dino_server::files::{shard::Shard, source::{Columns, Options, open}};
//!
//! let folder = tempfile::tempdir()?;
//! std::fs::create_dir(folder.path().join("cat"))?;
//! std::fs::write(folder.path().join("cat/1.jpg"), "bytes")?;
//!
//! let columns = Columns { image: None, id: None, label: None };
//! let options = Options { shard: Shard::WHOLE, columns, composed: None, counts_repeated: false };
//! let source = open(folder.path(), &options)?;
//! let picture = source.units[0].batches()?.next().unwrap().pictures.remove(0);
//! assert_eq!((picture.id.as_str(), picture.labels.as_slice()), ("cat/1.jpg", ["cat".to_owned()].as_slice()));
//! assert_eq!(picture.place.read()?, b"bytes");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod address;
#[cfg(feature = "parquet")]
mod cells;
mod folder;
#[cfg(feature = "parquet")]
pub(super) mod ipc;
mod list;
mod manifest;
#[cfg(feature = "parquet")]
pub(super) mod memory;
mod packed;
#[cfg(feature = "object-store")]
mod prefix;
#[cfg(feature = "object-store")]
mod refused;
#[cfg(feature = "parquet")]
pub(super) mod rows;
mod web;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(doc)]
use dino_vision::bulk::names;
use dino_vision::bulk::names::Finder;
use dino_vision::bulk::shards::{self, Member};
use dino_vision::bulk::{self, BATCH, compressed};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "object-store")]
use super::objects;
use super::shard::Shard;
use address::{Address, Base, without_secrets};
#[cfg(feature = "parquet")]
pub use cells::Cells;
use packed::{Local, Packed, PackedUnit};

/// What a source is read with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which part of it.
    pub shard: Shard,
    /// Columns of Parquet and Arrow files.
    pub columns: Columns,
    /// Whether ids that are names of files and members are composed (NFC) where they are not longer than so many bytes; see [`names::ids`].
    pub composed: Option<usize>,
    /// Whether ids that come again are counted ([`Source::repeated`]), which takes memory for all of them.
    pub counts_repeated: bool,
}

/// Columns with a meaning, where they have other names than the usual ones.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Bytes of the pictures: `image`, else the only column of bytes.
    pub image: Option<String>,
    /// Ids: `id`, else the row's number behind the name of the file.
    pub id: Option<String>,
    /// Labels: `label` or `labels`.
    pub label: Option<String>,
}

/// A picture, before its bytes are read.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The same on every machine and in every run: the path below the folder, `shard.tar/member`, `file.parquet/row`, or the id that a
    /// list, manifest or column gives.
    pub id: String,
    /// Its classes.
    pub labels: Vec<String>,
    /// Where its bytes are.
    pub place: Place,
}

/// Where the bytes of a picture are.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file or URL.
    At(Address),
    /// A member of a tar file.
    Member {
        /// The tar file.
        shard: Arc<Local>,
        /// Where in it.
        member: Member,
    },
    /// A cell of a column of bytes.
    #[cfg(feature = "parquet")]
    Cell {
        /// The rows that were read with it.
        cells: Arc<Cells>,
        /// Its place among them.
        row: usize,
        /// Name of the file and number of the row, for messages.
        shown: String,
    },
}

/// A picture that has no vector, and why. A line of the failures file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its id.
    pub id: String,
    /// Where it is: a path or URL, or the place in such a file.
    pub path: String,
    /// What is wrong.
    pub reason: String,
}

/// What is wrong with a row whose picture is null.
#[cfg(feature = "parquet")]
pub(super) const NO_BYTES: &str = "it has no bytes";

/// Pictures that are read together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// At most [`BATCH`] pictures.
    pub pictures: Vec<Picture>,
    /// What was found between them and is no picture.
    pub failures: Vec<Failure>,
}

/// The batches of a unit.
pub type Batches<'a> = Box<dyn Iterator<Item = Batch> + Send + 'a>;

/// A stretch of a source that is read in one go: some files, or a tar, Parquet or Arrow file.
pub trait Unit: Sync {
    /// Changes whenever the pictures may have changed: over names, sizes and times.
    ///
    /// # Errors
    /// [`Error::Storage`].
    fn stamp(&self) -> Result<String, Error>;

    /// Number of pictures, where that is known before it is read.
    fn count(&self) -> Option<usize>;

    /// Its pictures. The same stamp gives the same batches.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Column`]. A file that is damaged, or not what its name says, gives a failure.
    fn batches(&self) -> Result<Batches<'_>, Error>;
}

/// All pictures of a command, or a part of them.
pub struct Source {
    /// Stretches, in the order of the source.
    pub units: Vec<Box<dyn Unit>>,
    /// What was left out when they were listed; of all parts where there is nothing else.
    pub failures: Vec<Failure>,
    /// Hash over the ids, addresses and labels of all pictures in all parts, in their order.
    pub listing: String,
    /// Whether pictures come through a network, so that many are to be read at once.
    pub is_remote: bool,
    /// Whether there was no picture, in any part.
    pub is_empty: bool,
    /// How many pictures and files of all parts have an id that came before in the listing, and the first such id; none where
    /// [`Options::counts_repeated`] is not set.
    pub repeated: Option<(usize, String)>,
}

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Its name or a line of it says nothing that can be read.
    #[error("{0}")]
    Wrong(String),
    /// A file is not of its format.
    #[error("{shown}: {reason}")]
    Format {
        /// The file.
        shown: String,
        /// What is wrong.
        reason: String,
    },
    /// A storage or a server does not answer.
    #[error("{0}")]
    Storage(String),
    /// A file has not the column that [`Columns`] names, or it is of another type.
    #[error("{shown}: {reason}")]
    Column {
        /// The file.
        shown: String,
        /// What is wrong.
        reason: String,
    },
}

/// What was listed, before it is divided.
#[derive(Default)]
struct Listing {
    found: Vec<Found>,
    failures: Vec<Failure>,
}

enum Found {
    Picture(Picture),
    Packed(Packed),
}

impl Place {
    /// The bytes. The errors do not say where it is: [`Place::shown`] does.
    ///
    /// # Errors
    /// Before memory is spent, [`bulk::Error::TooLarge`].
    pub fn read(&self) -> Result<Vec<u8>, bulk::Error> {
        match self {
            Self::At(address) => address.read(),
            Self::Member { shard, member } => {
                if member.len > bulk::MAX_FILE {
                    return Err(bulk::Error::TooLarge { size: member.len });
                }
                shards::read(&shard.path, member.offset, member.len).map_err(|error| bulk::Error::NotThere(error.to_string()))
            }
            #[cfg(feature = "parquet")]
            Self::Cell { cells, row, .. } => {
                let bytes = cells.get(*row).ok_or_else(|| bulk::Error::NotThere(NO_BYTES.to_owned()))?;
                if bytes.len() as u64 > bulk::MAX_FILE {
                    Err(bulk::Error::TooLarge { size: bytes.len() as u64 })
                } else {
                    Ok(bytes.to_vec())
                }
            }
        }
    }

    /// Where it is, for messages.
    pub fn shown(&self) -> String {
        match self {
            Self::At(address) => address.to_string(),
            Self::Member { shard, member } => format!("{}/{}", shard.shown, member.name),
            #[cfg(feature = "parquet")]
            Self::Cell { shown, .. } => shown.clone(),
        }
    }
}

/// Opens what `--images` names. Folders and lists are listed as a whole, tar, Parquet and Arrow files are not opened yet.
///
/// # Errors
/// Where it is nothing that can be read; the message says what can be.
pub fn open(images: &Path, options: &Options) -> Result<Source, Error> {
    let listing = match images.to_str() {
        Some("-") => list::read(std::io::stdin().lock(), "the list on stdin", &Base::Folder(PathBuf::new()))?,
        _ if images.is_dir() => folder::list(images, options.composed)?,
        Some(text) => named(text, options.composed)?,
        None => return Err(unknown(images)),
    };
    Ok(Source::of(listing, options))
}

fn named(text: &str, composed: Option<usize>) -> Result<Listing, Error> {
    let shown = &without_secrets(text);
    #[cfg(feature = "object-store")]
    if text.ends_with('/') && (objects::Place::is_url(text) || text.starts_with("http://") || text.starts_with("https://")) {
        return prefix::list(&objects::Place::parse(text).map_err(Error::Wrong)?);
    }
    let path = Path::new(address::without_query(text));
    if let Some(kind) = compressed::by_name(path) {
        return Err(Error::Wrong(is_compressed(shown, kind)));
    }
    if packed::Kind::of(path).is_some_and(packed::Kind::is_readable) {
        return packed::pattern(text, composed);
    }
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    if matches!(ending.as_str(), "csv" | "tsv" | "jsonl" | "ndjson" | "txt") {
        let address = Address::parse(text, Path::new("")).map_err(Error::Wrong)?;
        let local = address.local()?;
        let base = address.base();
        let file = std::io::BufReader::new(fs_err::File::open(&local.path)?);
        return match ending.as_str() {
            "csv" => manifest::csv(file, b',', shown, &base),
            "tsv" => manifest::csv(file, b'\t', shown, &base),
            "txt" => list::read(file, shown, &base),
            _ => manifest::json_lines(file, shown, &base),
        };
    }
    #[cfg(feature = "object-store")]
    if objects::Place::is_url(text) {
        return prefix::list(&objects::Place::parse(text).map_err(Error::Wrong)?);
    }
    #[cfg(not(feature = "object-store"))]
    if super::storage::is_url(text) && !text.starts_with("http") {
        return Err(Error::Wrong(format!("{text}: {}", super::NO_OBJECTS)));
    }
    if packed::Kind::of(path).is_some() {
        return Err(Error::Wrong(format!("{shown}: {}", packed::NO_ROWS)));
    }
    Err(unknown(Path::new(shown.as_ref())))
}

fn unknown(images: &Path) -> Error {
    Error::Wrong(format!(
        "{} is no folder that can be read, and nothing else that holds pictures: give a folder, tar files (shards/{{0000..0012}}.tar), .parquet or \
         .arrow files, a manifest (.jsonl, .csv, .tsv), a list (.txt), or - for a list on stdin; s3://, gs:// and az:// name such files, and folders",
        images.display()
    ))
}

fn is_compressed(shown: &str, kind: compressed::Compression) -> String {
    format!(
        "{shown} is a tar file compressed by {}: unpack it with {} first, members are read where they lie in plain tar files",
        kind.by, kind.undo
    )
}

impl Source {
    /// The part of a listing that `options` ask for, in units. Pictures are divided by a hash of their ids. Tar, Parquet and Arrow files are
    /// divided by their place in the listing where there is one for each part or more, else each part takes its pictures out of all files.
    fn of(listing: Listing, options: &Options) -> Self {
        let shard = options.shard;
        let Listing { found, failures } = listing;
        let is_empty = found.is_empty();
        #[cfg(feature = "object-store")]
        refused::note_listed(&found);
        let mut names = Sha256::new();
        for found in &found {
            names.update(found.name());
        }
        let listing = hex::encode(names.finalize());
        let repeated = if options.counts_repeated { repeated(&found) } else { None };
        let files = found.iter().filter(|found| matches!(found, Found::Packed(_))).count();
        let by_file = files >= shard.count() as usize;
        let is_remote =
            found.iter().any(|found| matches!(found, Found::Picture(Picture { place: Place::At(address), .. }) if address.is_remote()));
        let (mut units, mut loose, mut number): (Vec<Box<dyn Unit>>, Vec<Picture>, usize) = (Vec::new(), Vec::new(), 0);
        for found in found {
            match found {
                Found::Picture(picture) => {
                    if shard.holds(&picture.id) {
                        loose.push(picture);
                    }
                    if loose.len() == BATCH {
                        units.push(Box::new(Loose(std::mem::take(&mut loose))));
                    }
                }
                Found::Packed(file) => {
                    number += 1;
                    if by_file && !shard.holds_place(number - 1) {
                        continue;
                    }
                    if !loose.is_empty() {
                        units.push(Box::new(Loose(std::mem::take(&mut loose))));
                    }
                    let part = if by_file { Shard::WHOLE } else { shard };
                    units.push(Box::new(PackedUnit { file, part, columns: options.columns.clone(), composed: options.composed }));
                }
            }
        }
        if !loose.is_empty() {
            units.push(Box::new(Loose(loose)));
        }
        let failures = failures.into_iter().filter(|failure| is_empty || shard.holds(&failure.id)).collect();
        Self { units, failures, listing, is_remote, is_empty, repeated }
    }

    /// The stamps of all units. Storages are asked for sixteen at a time.
    ///
    /// # Errors
    /// The first of [`Unit::stamp`].
    pub fn stamps(&self) -> Result<Vec<String>, Error> {
        let packed = side_by_side(&self.units, |unit| unit.count().is_none().then(|| unit.stamp()));
        // Those of single pictures ask for sixteen at a time themselves.
        self.units.iter().zip(packed).map(|(unit, stamp)| stamp.unwrap_or_else(|| unit.stamp())).collect()
    }

    /// Whether a storage that has refused these pictures, by their ids, gives one of them now. They are objects of their own.
    ///
    /// # Errors
    /// [`Error::Storage`].
    #[cfg(feature = "object-store")]
    pub fn gives_any(&self, refused: &[String]) -> Result<bool, Error> {
        if refused.is_empty() {
            return Ok(false);
        }
        let refused: HashSet<&str> = refused.iter().map(String::as_str).collect();
        let mut asked: Vec<Picture> = Vec::new();
        for unit in self.units.iter().filter(|unit| unit.count().is_some()) {
            let pictures = unit.batches()?.flat_map(|batch| batch.pictures);
            asked.extend(pictures.filter(|picture| refused.contains(picture.id.as_str())));
        }
        let is_given = |picture: &Picture| {
            let Place::At(Address::Object(object)) = &picture.place else { return Ok(false) };
            object.is_given().map_err(|error| Error::Storage(format!("{}: {error}", object.url())))
        };
        for some in asked.chunks(REQUESTS) {
            for is_given in side_by_side(some, is_given) {
                if is_given? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a storage that has refused these pictures gives one of them now: this build asks none.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "object-store"))]
    pub fn gives_any(&self, _refused: &[String]) -> Result<bool, Error> {
        Ok(false)
    }
}

/// How many have an id that came before, and the first such id.
fn repeated(found: &[Found]) -> Option<(usize, String)> {
    let mut seen = HashSet::with_capacity(found.len());
    let mut again = found.iter().map(Found::id).filter(|id| !seen.insert(*id));
    let first = again.next()?.to_owned();
    Some((1 + again.count(), first))
}

impl Found {
    fn id(&self) -> &str {
        match self {
            Self::Picture(picture) => &picture.id,
            Self::Packed(file) => &file.id,
        }
    }

    /// What says which picture or file it is.
    fn name(&self) -> String {
        match self {
            // A URL that is signed anew is the same picture; whether its bytes are read again says the stamp.
            Self::Picture(Picture { id, labels, place }) => format!("{id}\0{}\0{labels:?}\n", place.shown()),
            Self::Packed(file) => format!("{}\0{}\n", file.id, file.address),
        }
    }
}

/// Requests that wait for answers at once.
const REQUESTS: usize = 16;

/// What `ask` answers to each of `items`, in their order, some of them at a time.
fn side_by_side<T: Sync, A: Send>(items: &[T], ask: impl Fn(&T) -> A + Sync) -> Vec<A> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..REQUESTS.min(items.len()) {
            scope.spawn(|| {
                while let Some((index, item)) = items.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
                    let answer = ask(item);
                    answers.lock().push((index, answer));
                }
            });
        }
    });
    let mut answers = answers.into_inner();
    answers.sort_unstable_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// At most [`BATCH`] pictures, each in a file or behind a URL.
struct Loose(Vec<Picture>);

impl Unit for Loose {
    fn stamp(&self) -> Result<String, Error> {
        let finder = Finder::default();
        let state = |Picture { id, labels, place }: &Picture| {
            let (address, state) = if let Place::At(address) = place {
                (address.whole(), other_form(address, &finder).as_ref().unwrap_or(address).stamp()?)
            } else {
                (String::new(), String::new())
            };
            Ok(format!("{id}\0{address}\0{labels:?}\0{state}\n"))
        };
        let is_remote = |picture: &Picture| matches!(&picture.place, Place::At(address) if address.is_remote());
        // Threads would gain nothing on a disk.
        if self.0.iter().any(is_remote) { side_by_side(&self.0, state).into_iter().collect() } else { self.0.iter().map(state).collect() }
    }

    fn count(&self) -> Option<usize> {
        Some(self.0.len())
    }

    fn batches(&self) -> Result<Batches<'_>, Error> {
        Ok(Box::new(std::iter::once(Batch { pictures: self.0.clone(), failures: Vec::new() })))
    }
}

/// The file that is read in place of one that is not there, because their names differ in their Unicode form alone.
fn other_form(address: &Address, finder: &Finder) -> Option<Address> {
    let Address::File(path) = address else { return None };
    let is_gone = !path.as_os_str().is_ascii() && !path.exists();
    is_gone.then(|| finder.find(path)).flatten().map(Address::File)
}

/// A path as it is shown in messages.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The path of `file` in `folder`; `file` itself where it is absolute.
fn joined(folder: &Path, file: &str) -> PathBuf {
    folder.join(file)
}
