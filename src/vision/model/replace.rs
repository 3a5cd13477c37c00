//! Files of model folders and heads that take the place of others.

use std::io::{self, Write as _};
use std::path::Path;

/// Writes a file, durably; a reader sees the old file or the new one.
pub(crate) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    // Temporary files are private; a model may be served by another user.
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map_err(|error| error.error)?;
    fs_err::File::open(folder)?.sync_all()
}
