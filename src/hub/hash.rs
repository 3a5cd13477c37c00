//! What the bytes of a file are checked against.

use std::io::{self, Read};
use std::path::Path;

use fs_err as fs;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// The hash that a hub has of a file, in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    /// Of the bytes: files that git's large file storage keeps.
    Sha256(String),
    /// The name that git gives a blob: SHA-1 over `blob LENGTH\0` and the bytes.
    Git(String),
}

impl Hash {
    /// From an entity tag, which is the one or the other; `None` where it is neither.
    pub(crate) fn of_etag(etag: &str) -> Option<Self> {
        let hex = etag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        match etag.len() {
            64 if hex => Some(Self::Sha256(etag.to_owned())),
            40 if hex => Some(Self::Git(etag.to_owned())),
            _ => None,
        }
    }

    /// Its digits, which are the entity tag too.
    pub(crate) fn digits(&self) -> &str {
        let (Self::Sha256(digits) | Self::Git(digits)) = self;
        digits
    }

    /// Its name, in words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Git(_) => "git hash",
        }
    }

    /// The hash of the same kind of the file at `path`.
    pub(crate) fn measure(&self, path: &Path) -> io::Result<Self> {
        let mut file = fs::File::open(path)?;
        Ok(match self {
            Self::Sha256(_) => Self::Sha256(hex::encode(digest(Sha256::new(), &mut file)?)),
            Self::Git(_) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                Self::Git(hex::encode(digest(Sha1::new_with_prefix(header), &mut file)?))
            }
        })
    }
}

fn digest<D: Digest>(mut hash: D, file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().to_vec()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Hash;

    #[test]
    fn hashes_are_those_of_git_and_of_its_large_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |etag: &str| Hash::of_etag(etag).unwrap().measure(file.path()).unwrap().digits().to_owned();
        // `git hash-object` and `sha256sum` of the same bytes.
        let (git, sha) = ("0".repeat(40), "0".repeat(64));
        assert_eq!(check(&git), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        fs_err::write(file.path(), "hello\n").unwrap();
        assert_eq!(check(&git), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(check(&sha), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert!(["", "abc", &"g".repeat(40), &"A".repeat(64)].into_iter().all(|etag| Hash::of_etag(etag).is_none()));
    }
}
