//! SHA-256 of files that need not fit into memory, in hex.

use std::io::{self, BufRead as _, BufReader};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

/// The hash of the bytes of all files, one after the other in the order of their names.
pub(crate) fn of_files(files: &[PathBuf]) -> io::Result<String> {
    let mut files = files.to_vec();
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let mut reader = BufReader::with_capacity(1 << 20, fs_err::File::open(file)?);
        loop {
            let bytes = reader.fill_buf()?;
            if bytes.is_empty() {
                break;
            }
            hash.update(bytes);
            let count = bytes.len();
            reader.consume(count);
        }
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hash_like_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["b", "a"].map(|name| folder.path().join(name));
        fs_err::write(&files[0], "c").unwrap();
        fs_err::write(&files[1], "ab").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_files(&files).unwrap(), expected);
    }
}
