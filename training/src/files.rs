//! Files that are whole or not there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Start of the names of temporary files.
const UNFINISHED: &str = ".unfinished-";

/// Removes temporary files that a run left behind when it was killed while it wrote.
///
/// # Errors
/// When the folder cannot be read, or a file not be removed.
pub(crate) fn remove_unfinished(run: &Path) -> Result<()> {
    for entry in fs_err::read_dir(run)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes `bytes` to a temporary file beside `path`, makes it durable, and gives it its name.
///
/// # Errors
/// When the file cannot be written; what `path` held before is then untouched.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any new file: the umask decides who may read it.
    builder.prefix(UNFINISHED).permissions(std::fs::Permissions::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).with_context(|| folder.display().to_string())?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).with_context(|| format!("{} cannot be written", path.display()))?;
    file.persist(path).with_context(|| format!("{} cannot be written", path.display()))?;
    fs_err::File::open(folder)?.sync_all()?;
    Ok(())
}
