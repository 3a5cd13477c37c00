//! The pictures below a folder, in files and in tar files, decoded on demand and kept in memory while they fit.
//!
//! ```
//! use dino_train::data::pictures::Pictures;
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val");
//! let pictures = Pictures::open(folder.as_ref(), Some(32), 0)?;
//! let (name, class) = (pictures.name(0), pictures.class(0).unwrap());
//! assert!(name.starts_with(&*class));
//! let (width, height) = pictures.get(0).unwrap().dimensions();
//! assert_eq!(width.min(height), 32);
//! # Ok::<(), dino_train::data::pictures::Error>(())
//! ```

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use dino_vision::bulk::compressed::{self, Compression};
use dino_vision::bulk::samples::{self, Sample};
use dino_vision::bulk::tree::{is_named_as_picture, uppermost};
use dino_vision::bulk::{self, shards, sidecars, tree};
use dino_vision::media::{self, Limits};
use dino_vision::model::sha256;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use rayon::prelude::*;

/// Why a folder cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there.
    #[error("{0} is no folder, and no .tar file or pattern of them, like shards-{{000000..000099}}.tar")]
    NoFolder(PathBuf),
    /// A pattern of tar files makes no sense.
    #[error("{0}")]
    Pattern(String),
    /// It cannot be listed.
    #[error(transparent)]
    Unreadable(std::io::Error),
    /// It is a tar file that members cannot be read from where they lie.
    #[error("{path} is a tar file compressed by {}: unpack it with {} first, pictures are read where they lie in plain tar files", .kind.by, .kind.undo)]
    Compressed {
        /// The file.
        path: PathBuf,
        /// How it is compressed.
        kind: Compression,
    },
    /// There are pictures, and no classes.
    #[error(
        "{root} holds {count} pictures and no classes: put those of each class into a folder of its name directly below {root}, or, in tar \
         files, a .cls or .json that names the class beside each picture"
    )]
    NoClasses {
        /// The folder.
        root: PathBuf,
        /// Its pictures.
        count: usize,
    },
    /// It holds no pictures.
    #[error("{0} holds no pictures (files that end in .jpg, .png, .webp, .gif, .bmp or .tiff, at any depth, or in .tar files)")]
    Empty(PathBuf),
}

/// All pictures below a folder, in the order of their paths.
#[derive(Debug)]
pub struct Pictures {
    slots: Vec<Slot>,
    /// Files that were left out when the folder was listed.
    left_out: usize,
    shrink: Option<u32>,
    limits: Limits,
    /// Bytes that may still be kept.
    budget: AtomicUsize,
}

/// Where the bytes of a picture are.
#[derive(Debug)]
enum Source {
    File(PathBuf),
    Member { shard: Arc<Path>, sample: Sample },
}

impl Source {
    /// The bytes. One that is too large is refused before memory is spent on it.
    fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => bulk::read(path).map_err(|error| error.to_string()),
            Self::Member { shard, sample } => {
                shards::read(shard, sample.member.offset, sample.member.len).map_err(|error| error.to_string())
            }
        }
    }
}

#[derive(Debug)]
struct Slot {
    source: Source,
    /// Its path below the folder, through the tar file where it is in one.
    name: String,
    /// Where in the name the path inside of the tar file begins; 0 for a file.
    inside: usize,
    kept: OnceLock<Arc<RgbImage>>,
    broken: AtomicBool,
}

impl Pictures {
    /// Lists a folder, or the tar files of a pattern. Pictures are reduced to `shrink` pixels on their shorter side, if larger, when they
    /// are read; up to `cache` bytes of pixels stay in memory.
    ///
    /// # Errors
    /// When the folder is not there, or holds no picture.
    pub fn open(root: &Path, shrink: Option<u32>, cache: usize) -> Result<Self, Error> {
        let mut left_out = 0;
        let files: Vec<(String, PathBuf)> = if root.is_dir() {
            let listing = tree::list(root).map_err(Error::Unreadable)?;
            for skipped in &listing.skipped {
                tracing::warn!("left out {}: {}", skipped.path.display(), skipped.reason);
            }
            let (files, others): (Vec<_>, Vec<_>) =
                listing.entries.into_iter().partition(|entry| is_named_as_picture(&entry.path) || shards::is_pattern(&entry.path));
            let (packed, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|entry| compressed::by_name(&entry.path).is_some());
            for (entry, kind) in packed.iter().filter_map(|entry| Some((entry, compressed::by_name(&entry.path)?))) {
                let error = Error::Compressed { path: entry.path.clone(), kind };
                if files.is_empty() {
                    return Err(error);
                }
                tracing::warn!("left out: {error}");
            }
            let masks = sidecars::masks(&files.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>());
            let mut masks = masks.into_iter();
            let (masks, files): (Vec<_>, Vec<_>) = files.into_iter().partition(|_| masks.next() == Some(true));
            tell_masks(masks.iter().map(|entry| entry.id.as_str()));
            if let Some(other) = others.first() {
                tracing::info!(
                    "left out {} files whose names do not end like those of pictures, the first of them {}",
                    others.len(),
                    other.id
                );
            }
            left_out = listing.skipped.len() + packed.len() + masks.len() + others.len();
            files.into_iter().map(|entry| (entry.id, entry.path)).collect()
        } else if let Some(kind) = compressed::by_name(root).filter(|_| root.is_file() || root.to_string_lossy().contains('{')) {
            return Err(Error::Compressed { path: root.to_owned(), kind });
        } else if let Some(pattern) = root.to_str().filter(|_| shards::is_pattern(root)) {
            let files = shards::expand(pattern).map_err(Error::Pattern)?;
            files.into_iter().map(|path| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path)).collect()
        } else {
            return Err(Error::NoFolder(root.to_owned()));
        };
        // Tar files are read through to their ends, many at a time.
        let slots: Result<Vec<Vec<Slot>>, Error> = files.into_par_iter().map(|(name, path)| slots(name, path)).collect();
        let slots: Vec<Slot> = slots?.into_iter().flatten().collect();
        if slots.is_empty() {
            return Err(Error::Empty(root.to_owned()));
        }
        Ok(Self { slots, left_out, shrink, limits: Limits::default(), budget: AtomicUsize::new(cache) })
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Never true: a folder without pictures is an error.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Path of a picture below the folder.
    pub fn name(&self, index: usize) -> &str {
        &self.slots[index].name
    }

    /// What a picture shows: as the `.cls` or `.json` beside it in its tar file says, else the uppermost folder, inside of the tar file where
    /// it has one there.
    pub fn class(&self, index: usize) -> Option<Cow<'_, str>> {
        let Slot { name, inside, source, .. } = &self.slots[index];
        match source {
            Source::File(_) => uppermost(name).map(Cow::Borrowed),
            Source::Member { shard, sample } => {
                let class = sample.class(shard).map(Cow::Owned);
                // The path of the tar file ends in a slash.
                class.or_else(|| uppermost(name[..*inside].strip_suffix('/')?).map(Cow::Borrowed))
            }
        }
    }

    /// SHA-256 over all names, in hex.
    pub fn fingerprint(&self) -> String {
        let names: Vec<&str> = self.slots.iter().map(|slot| slot.name.as_str()).collect();
        sha256(names.join("\0").as_bytes())
    }

    /// Number of files that were left out when the folder was listed, such as links that lead nowhere.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Number of files that were found unreadable so far.
    pub fn broken(&self) -> usize {
        self.slots.iter().filter(|slot| slot.broken.load(Ordering::Relaxed)).count()
    }

    /// Decodes a picture; none if it is unreadable, which is said once.
    pub fn get(&self, index: usize) -> Option<Arc<RgbImage>> {
        let slot = &self.slots[index];
        if let Some(kept) = slot.kept.get() {
            return Some(Arc::clone(kept));
        }
        if slot.broken.load(Ordering::Relaxed) {
            return None;
        }
        let decoded = slot.source.read().and_then(|bytes| media::decode(&bytes, &self.limits).map_err(|error| error.to_string()));
        let picture = match decoded {
            Ok(picture) => Arc::new(match self.shrink {
                Some(side) => shrink(picture, side),
                None => picture,
            }),
            Err(reason) => {
                if !slot.broken.swap(true, Ordering::Relaxed) {
                    tracing::warn!("skipped {}: {reason}", self.name(index));
                }
                return None;
            }
        };
        let bytes = picture.as_raw().len();
        if self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
            && slot.kept.set(Arc::clone(&picture)).is_err()
        {
            // Another thread was faster: its copy counts.
            self.budget.fetch_add(bytes, Ordering::Relaxed);
        }
        Some(picture)
    }
}

fn tell_masks<'a>(mut masks: impl ExactSizeIterator<Item = &'a str>) {
    let count = masks.len();
    if let Some(first) = masks.next() {
        tracing::info!("left out {count} masks beside pictures, the first of them {first}");
    }
}

/// The pictures of a file: those in it if it is a tar file, else itself.
fn slots(name: String, path: PathBuf) -> Result<Vec<Slot>, Error> {
    let slot = |name, inside, source| Slot { name, inside, source, kept: OnceLock::new(), broken: AtomicBool::new(false) };
    if !shards::is_pattern(&path) {
        return Ok(vec![slot(name, 0, Source::File(path))]);
    }
    if let Some(kind) = compressed::by_content(&path).map_err(Error::Unreadable)? {
        return Err(Error::Compressed { path, kind });
    }
    let samples = samples::of(&path).map_err(Error::Unreadable)?;
    if let Some(damage) = samples.damage {
        tracing::warn!("{name} {damage}");
    }
    let shard: Arc<Path> = path.into();
    let of_sample = |sample: Sample| {
        let name_inside = format!("{name}/{}", sample.member.name);
        slot(name_inside, name.len() + 1, Source::Member { shard: Arc::clone(&shard), sample })
    };
    Ok(samples.found.into_iter().map(of_sample).collect())
}

/// Reduces a picture so that its shorter side is `side` pixels; smaller ones stay as they are.
fn shrink(picture: RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let shorter = width.min(height);
    if shorter <= side {
        return picture;
    }
    let scaled = |length: u32| (f64::from(length) * f64::from(side) / f64::from(shorter)).round().max(1.0) as u32;
    resample(&picture, (0.0, 0.0, f64::from(width), f64::from(height)), scaled(width), scaled(height))
}

/// A window (left, top, width, height) of a picture, resampled by an antialiased bicubic filter.
pub(super) fn resample(picture: &RgbImage, window: (f64, f64, f64, f64), width: u32, height: u32) -> RgbImage {
    resample_with(FilterType::CatmullRom, picture, window, width, height)
}

/// The same by any antialiased filter.
pub(super) fn resample_with(filter: FilterType, picture: &RgbImage, window: (f64, f64, f64, f64), width: u32, height: u32) -> RgbImage {
    let mut result = RgbImage::new(width, height);
    // With a type of pixels, code for the other types is not compiled.
    let source = TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.as_raw());
    let target = TypedImage::<U8x3>::from_buffer(width, height, result.as_mut());
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(window.0, window.1, window.2, window.3);
    if let (Ok(source), Ok(mut target)) = (source, target) {
        let done = Resizer::new().resize_typed(&source, &mut target, &options);
        debug_assert!(done.is_ok(), "the window lies inside the picture");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_would_fill_the_memory_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat/x.jpg");
        fs_err::create_dir(folder.path().join("cat")).unwrap();
        // It takes no room on the disk.
        fs_err::File::create(&path).unwrap().set_len(bulk::MAX_FILE + 1).unwrap();
        let reason = Source::File(path).read().unwrap_err();
        assert_eq!(reason, format!("the file has {} bytes, at most {} are read", bulk::MAX_FILE + 1, bulk::MAX_FILE));
        let pictures = Pictures::open(folder.path(), None, 0).unwrap();
        assert!(pictures.get(0).is_none());
        assert_eq!(pictures.broken(), 1);
    }
}
