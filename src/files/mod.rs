//! Files of the command line's bulk work: [`table`] is what `import` reads, [`vectors`] what `embed` writes and `import` takes up
//! again, [`shard`] the part of it that one of several jobs does. [`duplicates`] is the report of near-copies.

pub mod duplicates;
pub mod shard;
pub mod table;
pub mod vectors;

use std::io::{BufWriter, Write as _};
use std::path::Path;

/// What a build without the feature `parquet` answers to the name of a Parquet file.
#[cfg(not(feature = "parquet"))]
pub const NO_PARQUET: &str =
    "this program was built without its feature `parquet` (`make serve` leaves it out), which `cargo build --release` includes";

/// Writes a file beside `path` and moves it there once it is complete and on the disk.
fn replace<E: From<std::io::Error>>(path: &Path, write: impl FnOnce(&mut BufWriter<&mut std::fs::File>) -> Result<(), E>) -> Result<(), E> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".unfinished-").tempfile_in(folder)?;
    let mut out = BufWriter::new(file.as_file_mut());
    write(&mut out)?;
    out.flush()?;
    drop(out);
    // Temporary files are private; this is an ordinary one.
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
