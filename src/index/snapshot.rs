//! Snapshots: a collection as one file, for backups and to move it.
//!
//! The file, all numbers little-endian:
//!
//! | bytes | content |
//! | --- | --- |
//! | 8 | `DINOSNAP` |
//! | 4 | version: 1, or 2 for a collection of patches |
//! | 4 + n | length, then [`Header`] as JSON |
//! | per item: 4 + n, 4 · dim, 4 + n | length, then [`Item`] as JSON; the vector as f32; length (0 for none), then the JPEG |
//! | in version 2 after it: 4 + n | length, then the [patches](dino_vision::anomaly::PatchSet::to_bytes) |
//! | 4 | 0, the end of the items |
//! | 32 | SHA-256 of everything before |
//!
//! Vectors keep all their bits, so that a restored collection gives the same answers.
//!
//! ```
//! use dino_server::index::{Collection, EmbeddedStore, IndexOptions, ModelTag, OnExisting, Spec, snapshot};
//!
//! let folder = tempfile::tempdir()?;
//! let store = EmbeddedStore::open(&folder.path().join("data"), IndexOptions::default())?;
//! let model = ModelTag { fingerprint: "0".repeat(32), precision: None };
//! let (collection, _) = store.create(&"animals".parse()?, Spec::pictures(384, model))?;
//!
//! let file = folder.path().join("animals.dino");
//! snapshot::save(&*collection, &file)?;
//! let copy = snapshot::restore(&store, &file, Some("copy".parse()?), OnExisting::Refuse)?;
//! assert_eq!((copy.name().as_str(), copy.spec()), ("copy", collection.spec()));
//! # Ok::<(), dino_server::index::Error>(())
//! ```

use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use dino_vision::anomaly::MAX_STORED;

use super::item::{
    Attached, Damaged, Item, MAX_JSON, MAX_STRING, MAX_THUMBNAIL, NewItem, check_patches, prepare, vector_from_bytes, vector_to_bytes,
};
use super::{Collection, CollectionName, Error, MAX_DIM, ModelTag, OnExisting, Spec, Store};

const MAGIC: &[u8; 8] = b"DINOSNAP";
const VERSION: u32 = 1;
/// The version that patches are written in: earlier programs refuse it.
const PATCHES_VERSION: u32 = 2;
/// Length of the checksum at the end.
const SUM: u64 = 32;
/// Largest header, in bytes.
const MAX_HEADER: usize = 64 * 1024;

/// What a snapshot says of its collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Name of the collection when the snapshot was made.
    pub name: CollectionName,
    /// Dimension and model.
    #[serde(flatten)]
    pub spec: Spec,
}

/// Writes a collection, as it is at this moment, to `out`. Returns the items that cannot be read back, which are left out.
///
/// # Errors
/// Those of writing and of the store.
pub fn write(collection: &dyn Collection, out: impl Write) -> Result<Vec<Damaged>, Error> {
    let header = Header { name: collection.name().clone(), spec: collection.spec().clone() };
    let mut out = Writer::begin(&header, out)?;
    let mut left_out = Vec::new();
    let spec = collection.spec();
    let check = |item: &Item, patches: Option<&[u8]>| item.check_stored_form().and_then(|()| check_patches(patches, spec));
    let damaged = collection.export(&mut |stored, attached| match check(&stored.item, attached.patches) {
        Ok(()) => out.item(&stored.item, &stored.vector, attached),
        Err(reason) => {
            left_out.push(Damaged { id: stored.item.id.clone(), reason });
            Ok(())
        }
    })?;
    left_out.extend(damaged);
    for Damaged { id, reason } in &left_out {
        tracing::error!(collection = %collection.name(), id, "an item is left out of a snapshot, it cannot be read back: {reason}");
    }
    out.end()?;
    Ok(left_out)
}

/// Reads a snapshot as [`read`] does and keeps nothing of it: what passes can be restored. Returns the number of its items.
///
/// # Errors
/// As for [`read`].
pub fn verify(path: &Path) -> Result<usize, Error> {
    let mut count = 0;
    for item in Snapshot::open(path)? {
        item?;
        count += 1;
    }
    Ok(count)
}

/// Writes a collection to a file, which is complete and was read back, or not there. Returns the items that were left out.
///
/// # Errors
/// Those of [`write()`] and [`verify`].
pub fn save(collection: &dyn Collection, path: &Path) -> Result<Vec<Damaged>, Error> {
    save_with(path, |out| write(collection, out))
}

/// Writes items to a file as if they were a collection. Their vectors `[dim]` may have any length.
///
/// # Errors
/// Those of an upsert of the items, and of writing.
pub fn save_items(header: &Header, items: Vec<NewItem>, path: &Path) -> Result<(), Error> {
    let items = prepare(items, &header.spec)?;
    save_with(path, |out| {
        let mut out = Writer::begin(header, out)?;
        for NewItem { item, vector, thumbnail, patches } in &items {
            out.item(item, vector, Attached { picture: thumbnail.as_deref(), patches: patches.as_deref() })?;
        }
        Ok(out.end()?)
    })
}

fn save_with<T>(path: &Path, write: impl FnOnce(BufWriter<&mut std::fs::File>) -> Result<T, Error>) -> Result<T, Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".snapshot-").tempfile_in(folder)?;
    let written = write(BufWriter::new(file.as_file_mut()))?;
    file.as_file().sync_all()?;
    verify(file.path())?;
    let file = file.persist(path).map_err(|error| error.error)?;
    // Temporary files are private; a snapshot is an ordinary file.
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    drop(file);
    Ok(written)
}

/// Makes a collection of the snapshot at `path`, in one step, under `name` or its own.
///
/// # Errors
/// [`Error::Damaged`] where the file is not whole, before anything is changed; [`Error::Exists`] where the
/// collection exists and `existing` refuses.
pub fn restore(store: &dyn Store, path: &Path, name: Option<CollectionName>, existing: OnExisting) -> Result<Arc<dyn Collection>, Error> {
    let mut snapshot = Snapshot::open(path)?;
    let (name, spec) = (name.unwrap_or_else(|| snapshot.header.name.clone()), snapshot.header.spec.clone());
    store.create_with(&name, spec, &mut snapshot, existing)
}

/// The header of a snapshot, without a look at the rest.
///
/// # Errors
/// As for [`read`].
pub fn read_header(path: &Path) -> Result<Header, Error> {
    Reader::open(path)?.header()
}

/// The content of a snapshot, its checksum compared first.
///
/// # Errors
/// [`Error::Damaged`] names a file that is cut, changed, or no snapshot; [`Error::Unsupported`] one that is too new.
pub fn read(path: &Path) -> Result<(Header, Vec<NewItem>), Error> {
    let mut snapshot = Snapshot::open(path)?;
    let items = snapshot.by_ref().collect::<Result<_, _>>()?;
    Ok((snapshot.header, items))
}

/// A snapshot that is read item by item.
pub struct Snapshot<'a> {
    header: Header,
    reader: Reader<'a>,
    is_over: bool,
}

impl<'a> Snapshot<'a> {
    /// Compares the checksum of the snapshot at `path`.
    ///
    /// # Errors
    /// As for [`read`].
    pub fn open(path: &'a Path) -> Result<Self, Error> {
        let mut reader = Reader::open(path)?;
        reader.check_sum()?;
        let header = reader.header()?;
        Ok(Self { header, reader, is_over: false })
    }

    /// What the snapshot says of its collection.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl Iterator for Snapshot<'_> {
    type Item = Result<NewItem, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let item = self.reader.item(&self.header.spec).transpose();
        self.is_over = !matches!(item, Some(Ok(_)));
        item
    }
}

/// Writes the parts of a snapshot in their order, and sums them up.
struct Writer<W> {
    out: W,
    sum: Sha256,
}

impl<W: Write> Writer<W> {
    fn begin(header: &Header, out: W) -> std::io::Result<Self> {
        let mut writer = Self { out, sum: Sha256::new() };
        writer.bytes(MAGIC)?;
        let version = if header.spec.patches().is_some() { PATCHES_VERSION } else { VERSION };
        writer.bytes(&version.to_le_bytes())?;
        writer.block(&serde_json::to_vec(header)?)?;
        Ok(writer)
    }

    /// Patches are there in a collection of patches, and only there.
    fn item(&mut self, item: &Item, vector: &[f32], attached: Attached<'_>) -> std::io::Result<()> {
        self.block(&item.to_stored_form()?)?;
        self.bytes(&vector_to_bytes(vector))?;
        self.block(attached.picture.unwrap_or_default())?;
        attached.patches.map_or(Ok(()), |patches| self.block(patches))
    }

    fn end(mut self) -> std::io::Result<()> {
        self.block(&[])?;
        self.out.write_all(&self.sum.finalize())?;
        self.out.flush()
    }

    /// A length, then that many bytes.
    fn block(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        self.bytes(&length.to_le_bytes())?;
        self.bytes(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }
}

struct Reader<'a> {
    path: &'a Path,
    file: BufReader<fs_err::File>,
    /// Bytes before the checksum that were not read yet.
    left: u64,
    version: u32,
}

impl<'a> Reader<'a> {
    fn open(path: &'a Path) -> Result<Self, Error> {
        let file = fs_err::File::open(path)?;
        let size = file.metadata()?.len();
        let mut reader = Self { path, file: BufReader::new(file), left: size.saturating_sub(SUM), version: VERSION };
        if reader.bytes(MAGIC.len()).ok().as_deref() != Some(MAGIC) {
            return Err(reader.damaged("it is no snapshot of a collection"));
        }
        let version = reader.number()?;
        if ![VERSION, PATCHES_VERSION].contains(&version) {
            let detail = format!("this snapshot has version {version}, this program reads up to {PATCHES_VERSION}: use a newer one");
            return Err(Error::Unsupported { path: path.to_owned(), detail });
        }
        reader.version = version;
        Ok(reader)
    }

    /// Compares the checksum, and comes back to where it was.
    fn check_sum(&mut self) -> Result<(), Error> {
        let here = self.file.stream_position()?;
        self.file.rewind()?;
        let mut sum = Sha256::new();
        let mut to_sum = (&mut self.file).take(here + self.left);
        let mut buffer = vec![0; 1 << 16];
        loop {
            match to_sum.read(&mut buffer)? {
                0 => break,
                read => sum.update(&buffer[..read]),
            }
        }
        let mut stored = [0; SUM as usize];
        self.file.read_exact(&mut stored)?;
        if sum.finalize().as_slice() != stored.as_slice() {
            return Err(self.damaged("its checksum is wrong: it was cut or changed"));
        }
        self.file.seek(SeekFrom::Start(here))?;
        Ok(())
    }

    fn header(&mut self) -> Result<Header, Error> {
        let json = self.block(MAX_HEADER)?;
        let header: Header = serde_json::from_slice(&json).map_err(|error| self.damaged(error.to_string()))?;
        let ModelTag { fingerprint, precision } = &header.spec.model;
        let is_plain = |text: &str| text.len() <= MAX_STRING && !text.contains(char::is_control);
        if !is_plain(fingerprint) || !precision.as_deref().is_none_or(is_plain) {
            return Err(self.damaged("the name of its model has control characters or is too long"));
        }
        if header.spec.patches().is_some() != (self.version == PATCHES_VERSION) {
            return Err(self.damaged("its version does not go with what it says that it holds"));
        }
        match header.spec.dim {
            1..=MAX_DIM => Ok(header),
            dim => Err(self.damaged(format!("it says that its vectors have {dim} dimensions"))),
        }
    }

    /// The next item with its vector `[dim]`; `None` at the end, after which there must be nothing more.
    fn item(&mut self, spec: &Spec) -> Result<Option<NewItem>, Error> {
        let json = self.block(MAX_JSON)?;
        if json.is_empty() {
            return if self.left == 0 { Ok(None) } else { Err(self.damaged("there is more after its end")) };
        }
        let item = Item::from_stored_form(&json).map_err(|reason| self.damaged(reason))?;
        let vector = vector_from_bytes(&self.bytes(spec.dim * 4)?);
        let picture = self.block(MAX_THUMBNAIL)?;
        let patches = spec.patches().map(|_| self.block(MAX_STORED)).transpose()?;
        Ok(Some(NewItem { item, vector, thumbnail: (!picture.is_empty()).then_some(picture), patches }))
    }

    fn block(&mut self, most: usize) -> Result<Vec<u8>, Error> {
        let length = self.number()? as usize;
        if length > most {
            return Err(self.damaged(format!("a part of {length} bytes where at most {most} are allowed")));
        }
        self.bytes(length)
    }

    fn number(&mut self) -> Result<u32, Error> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The next bytes; their number is compared with what the file has before memory is taken.
    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        self.left = self.left.checked_sub(length as u64).ok_or_else(|| self.damaged("it ends too early"))?;
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn damaged(&self, detail: impl Into<String>) -> Error {
        Error::damaged(self.path, detail)
    }
}
