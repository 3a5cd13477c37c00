//! Compressed tar files, which are named as what they are: a member of one cannot be read where it lies.
//!
//! ```
//! use dino_vision::bulk::compressed::by_name;
//!
//! let kind = by_name("shard.tar.gz".as_ref()).unwrap();
//! assert_eq!((kind.by, kind.undo), ("gzip", "gunzip"));
//! assert_eq!(by_name("shard.tar".as_ref()), None);
//! ```

use std::io::{self, Read as _};
use std::path::Path;

use fs_err::File;

/// A program that compresses, the endings of what it makes of tar files, its first bytes, and how to undo it.
struct Kind {
    name: &'static str,
    endings: &'static [&'static str],
    magic: &'static [u8],
    undo: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind { name: "gzip", endings: &[".tar.gz", ".tgz"], magic: &[0x1f, 0x8b], undo: "gunzip" },
    Kind { name: "bzip2", endings: &[".tar.bz2", ".tbz2", ".tbz"], magic: b"BZh", undo: "bunzip2" },
    Kind { name: "xz", endings: &[".tar.xz", ".txz"], magic: &[0xfd, b'7', b'z', b'X', b'Z', 0], undo: "unxz" },
    Kind { name: "zstd", endings: &[".tar.zst", ".tzst"], magic: &[0x28, 0xb5, 0x2f, 0xfd], undo: "unzstd" },
];

/// A program that compressed a tar file, and the one that undoes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// For example gzip.
    pub by: &'static str,
    /// For example gunzip.
    pub undo: &'static str,
}

impl From<&Kind> for Compression {
    fn from(kind: &Kind) -> Self {
        Self { by: kind.name, undo: kind.undo }
    }
}

/// What the name of a tar file says.
pub fn by_name(path: &Path) -> Option<Compression> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    KINDS.iter().find(|kind| kind.endings.iter().any(|ending| name.ends_with(ending))).map(Compression::from)
}

/// What the first bytes of a file say that is called a tar file.
///
/// # Errors
/// When it cannot be opened.
pub fn by_content(path: &Path) -> io::Result<Option<Compression>> {
    let mut first = Vec::new();
    File::open(path)?.take(6).read_to_end(&mut first)?;
    // The name of a tar's first member may begin with the letters of bzip2, whose first block begins with digits of pi.
    let is_block = first.get(4..6).is_some_and(|block| block == b"1A");
    Ok(KINDS.iter().find(|kind| first.starts_with(kind.magic) && (kind.name != "bzip2" || is_block)).map(Compression::from))
}
