//! Links to files that are gone.
//!
//! ```
//! use dino_vision::links::broken;
//!
//! let folder = tempfile::tempdir()?;
//! let link = folder.path().join("model.safetensors");
//! std::os::unix::fs::symlink("../../blobs/0a1b2c", &link)?;
//! assert!(broken(&link).is_some_and(|reason| reason.contains("is a link to ../../blobs/0a1b2c, which is gone")));
//! assert_eq!(broken(folder.path()), None);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::path::Path;

/// What is wrong with a path that is a link to nothing, and what to do; `None` for every other path, one that is not there among them.
/// In the cache of a model hub every file is a link to a blob, and copying such a folder without following its links leaves these.
pub fn broken(path: &Path) -> Option<String> {
    if !path.is_symlink() || path.exists() {
        return None;
    }
    let target = std::fs::read_link(path).map(|target| target.display().to_string()).unwrap_or_default();
    let of_cache = path.components().any(|part| part.as_os_str() == "snapshots") || target.contains("blobs/");
    let way_out = if of_cache {
        "the blob is missing in the cache of a model hub: name the model as hf://OWNER/NAME, which fetches it again, or copy the model with \
         its links followed (cp -L)"
    } else {
        "put the file there, or in place of the link"
    };
    Some(format!("{} is a link to {target}, which is gone; {way_out}", path.display()))
}
