//! Samples in tar files, as `WebDataset` lays them out: members are indexed once, then read where they lie.
//!
//! A member that is a picture is a sample; what lies beside it may name its class ([`super::sidecars`]).
//!
//! ```
//! use dino_vision::bulk::shards::{expand, index, read};
//!
//! assert_eq!(expand("shard-{09..10}.tar")?, [std::path::Path::new("shard-09.tar"), std::path::Path::new("shard-10.tar")]);
//!
//! let file = tempfile::NamedTempFile::new()?;
//! let mut header = tar::Header::new_gnu();
//! header.set_size(5);
//! let mut archive = tar::Builder::new(file.reopen()?);
//! archive.append_data(&mut header, "7.jpg", b"bytes".as_slice())?;
//! archive.finish()?;
//! let (members, damage) = index(file.path())?;
//! assert_eq!((members[0].name.as_str(), damage.is_none()), ("7.jpg", true));
//! assert_eq!(read(file.path(), members[0].offset, members[0].len)?, b"bytes");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::MAX_FILE;
use fs_err::File;

/// Length of a tar file's blocks.
const BLOCK: u64 = 512;
/// Most files that a pattern may stand for.
const MOST: u64 = 1_000_000;

/// A file inside a tar file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path there.
    pub name: String,
    /// Its first byte in the tar file.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Members of a tar file, in their order. Where the file is damaged, those before that, and what is wrong.
///
/// # Errors
/// When the file cannot be opened.
pub fn index(file: &Path) -> io::Result<(Vec<Member>, Option<io::Error>)> {
    let source = File::open(file)?;
    let len = source.metadata()?.len();
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(4096, source));
    let (mut members, mut end) = (Vec::new(), 0);
    for entry in archive.entries_with_seek()? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Ok((members, Some(error))),
        };
        end = entry.raw_file_position().saturating_add(entry.size());
        if !entry.header().entry_type().is_file() || end > len {
            continue;
        }
        match entry.path().map(|path| path.to_str().map(str::to_owned)) {
            Ok(Some(name)) => members.push(Member { name, offset: entry.raw_file_position(), len: entry.size() }),
            Ok(None) => tracing::warn!("left out a member of {}: its name is not UTF-8", file.display()),
            Err(error) => return Ok((members, Some(error))),
        }
    }
    // A block of zeros follows the last member; reading on behind the end of a file that was cut is no error to the library.
    let cut = end.next_multiple_of(BLOCK).saturating_add(BLOCK) > len;
    Ok((members, cut.then(|| ErrorKind::UnexpectedEof.into())))
}

/// The bytes of a member.
///
/// # Errors
/// When it is too large, or the file ends before it.
pub fn read(file: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let file = File::open(file)?;
    let whole = offset.checked_add(len).is_some_and(|end| file.metadata().is_ok_and(|data| end <= data.len()));
    if len > MAX_FILE || !whole {
        let reason =
            if whole { format!("it has {len} bytes, at most {MAX_FILE} are read") } else { "the tar file ends inside it".to_owned() };
        return Err(io::Error::new(ErrorKind::InvalidData, reason));
    }
    let mut bytes = vec![0; len as usize];
    file.file().read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// True for a path that means tar files: a file that ends in `.tar`, or a pattern of them.
pub fn is_pattern(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"))
}

/// The files that a pattern stands for: each `{first..last}` counts, with as many digits as `first` has.
///
/// # Errors
/// Says what is wrong with the pattern.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.into()]) };
    let wrong = || format!("{pattern}: a range like {{000000..000099}} is wanted in braces, of at most {MOST} files");
    let (range, after) = rest.split_once('}').ok_or_else(wrong)?;
    let (first, last) = range.split_once("..").ok_or_else(wrong)?;
    let (from, to) = (first.parse::<u64>().map_err(|_| wrong())?, last.parse::<u64>().map_err(|_| wrong())?);
    if to < from || to - from >= MOST {
        return Err(wrong());
    }
    let ends = expand(after)?;
    if (to - from + 1).saturating_mul(ends.len() as u64) > MOST {
        return Err(wrong());
    }
    let file = |number: u64, end: &PathBuf| format!("{before}{number:0width$}{}", end.display(), width = first.len()).into();
    Ok((from..=to).flat_map(|number| ends.iter().map(move |end| file(number, end))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }

    #[test]
    fn members_are_found_where_they_lie() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/b.jpg", "deep".repeat(60));
        append(&mut builder, "a.jpg", b"first");
        append(&mut builder, "a.cls", b"7");
        append(&mut builder, &long, &[9; 1000]);
        let bytes = builder.into_inner().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.tar");
        fs_err::write(&file, &bytes).unwrap();
        let (members, damage) = index(&file).unwrap();
        assert!(damage.is_none());
        assert_eq!(members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["a.jpg", "a.cls", &long]);
        assert_eq!(read(&file, members[0].offset, members[0].len).unwrap(), b"first");
        assert_eq!(read(&file, members[2].offset, members[2].len).unwrap(), [9; 1000]);
        // Cut inside the last member, before it, and behind it.
        let (start, end) = (members[2].offset as usize, bytes.len() - 1024);
        for (at, left) in [(start + 10, 2), (members[1].offset as usize + 512, 2), (end, 3)] {
            fs_err::write(&file, &bytes[..at]).unwrap();
            let (found, damage) = index(&file).unwrap();
            assert_eq!(found, members[..left], "cut at {at}");
            assert!(damage.is_some(), "cut at {at}");
            assert!(read(&file, members[2].offset, members[2].len).is_ok() == (left == 3));
        }
        // A length that would fill the memory is not believed.
        assert!(read(&file, 0, u64::MAX).is_err());
        fs_err::write(&file, [7; 2000]).unwrap();
        assert!(index(&file).unwrap().1.is_some());
    }

    #[test]
    fn patterns_count() {
        let names = |pattern: &str| expand(pattern).map(|files| files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>());
        assert_eq!(names("x-{08..11}.tar").unwrap(), ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]);
        assert_eq!(names("{0..1}/{5..6}.tar").unwrap(), ["0/5.tar", "0/6.tar", "1/5.tar", "1/6.tar"]);
        assert_eq!(names("one.tar").unwrap(), ["one.tar"]);
        for wrong in ["{1..x}.tar", "{5..1}.tar", "{1}.tar", "{1..2.tar", "{0..99999999999}.tar", "{0..9999}{0..9999}.tar"] {
            assert!(names(wrong).unwrap_err().contains("is wanted in braces"), "{wrong}");
        }
    }
}
