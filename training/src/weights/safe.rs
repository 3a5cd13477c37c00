//! safetensors files, one or a set with an index.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use fs_err::File;
use safetensors::tensor::Metadata;
use serde_json::Value as Json;

use super::store::{Store, View};
use super::{Error, open_file};

/// The longest header that is read, the limit of the format's own library.
const LONGEST_HEADER: u64 = 100_000_000;

/// Adds the tensors of one file. Its `__metadata__` become scalars.
pub(super) fn add(store: &mut Store, path: &Path) -> Result<(), Error> {
    let damaged = |reason: String| Error::Damaged { file: path.to_owned(), reason };
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(|_| damaged("shorter than its header".to_owned()))?;
    let header = u64::from_le_bytes(prefix);
    if header > LONGEST_HEADER || header > length.saturating_sub(8) {
        return Err(damaged(format!("a header of {header} bytes in a file of {length}")));
    }
    let mut json = vec![0; header as usize];
    file.read_exact(&mut json)?;
    let metadata: Metadata = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if expected != length {
        return Err(damaged(format!("{length} bytes long where its header speaks of {expected}")));
    }

    let index = store.files.len();
    store.files.push(path.to_owned());
    for (name, info) in metadata.tensors() {
        let start = 8 + header + info.data_offsets.0 as u64;
        let view = View::whole(index, info.dtype, start, info.shape.clone());
        store.insert(&name, view)?;
    }
    for (key, value) in metadata.metadata().iter().flatten() {
        store.scalars.insert(key.clone(), Json::String(value.clone()));
    }
    Ok(())
}

/// Adds the tensors of every file that an index (`model.safetensors.index.json`) names.
pub(super) fn add_sharded(store: &mut Store, index: &Path) -> Result<(), Error> {
    let damaged = |reason: String| Error::Damaged { file: index.to_owned(), reason };
    let json: Json = serde_json::from_slice(&fs_err::read(index)?).map_err(|error| damaged(error.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| damaged("it has no weight_map".to_owned()))?;
    let mut shards = BTreeSet::new();
    for shard in map.values() {
        let shard = shard.as_str().ok_or_else(|| damaged("a shard is no file name".to_owned()))?;
        if Path::new(shard).file_name().is_none_or(|name| name != shard) {
            return Err(damaged(format!("the shard {shard:?} is not a plain file name")));
        }
        shards.insert(shard);
    }
    let folder = index.parent().unwrap_or(Path::new("."));
    for shard in shards {
        let path = folder.join(shard);
        if !path.exists() && !path.is_symlink() {
            return Err(damaged(format!("it names {shard}, which is not beside it: fetch or copy all files that it names")));
        }
        open_file(store, &path)?;
    }
    let there: BTreeSet<&str> = store.names().collect();
    if let Some(lost) = map.keys().find(|name| !there.contains(name.as_str())) {
        return Err(damaged(format!("tensor {lost} is in none of the files it names")));
    }
    Ok(())
}
