//! SHA-256 in hex.
//!
//! ```
//! let sum = dino_server::index::checksum::of_bytes(b"cat");
//! assert_eq!(sum, "77af778b51abd4a3c51c5ddd97204a9c3ae614ebccb75a606c3b6865aed6744e");
//! ```

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// SHA-256 of bytes, in hex.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 of a file, in hex, read piece by piece.
///
/// # Errors
/// Those of reading; they name the file.
pub fn of_file(path: &Path) -> std::io::Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Sums up what is written through it.
pub(crate) struct Summing<W> {
    out: W,
    hasher: Sha256,
}

impl<W: std::io::Write> Summing<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new() }
    }

    /// What was written to, and the SHA-256 in hex of all that was.
    pub(crate) fn finish(mut self) -> std::io::Result<(W, String)> {
        self.out.flush()?;
        Ok((self.out, hex::encode(self.hasher.finalize())))
    }
}

impl<W: std::io::Write> std::io::Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
