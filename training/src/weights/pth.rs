//! Files of `torch.save`: the zip container of PyTorch 1.6 and later, and the plain pickles before it.
//!
//! The container holds `<name>/data.pkl` (a pickle of everything but the numbers) and one stored entry
//! `<name>/data/<key>` for each storage, the run of numbers that one or several tensors view.

use std::collections::HashMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use fs_err::File;
use safetensors::Dtype;
use serde_json::Value as Json;
use zip::{CompressionMethod, ZipArchive};

use super::Error;
use super::pickle::{self, Heap, Id, Value};
use super::store::{Store, View};

/// The longest pickle that is read. Those of the largest public checkpoints take a few megabytes.
const LONGEST_PICKLE: u64 = 256 << 20;
/// Deepest nesting of dictionaries that is followed; this also ends cycles.
const DEEPEST: usize = 12;
/// Most entries that all dictionaries together may show, so that shared ones cannot multiply without end.
const MOST_ENTRIES: usize = 2_000_000;
/// Longest dotted name.
const LONGEST_NAME: usize = 512;
/// First bytes of a file in the format before the zip container: the pickled magic number of `torch.save`.
pub(super) const LEGACY_MAGIC: [u8; 14] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// A storage's place in the file: first byte, and length in bytes.
type Storages = HashMap<String, (u64, u64)>;

/// Adds the tensors and plain values of a zip container.
pub(super) fn add(store: &mut Store, path: &Path) -> Result<(), Error> {
    let damaged = |reason: String| Error::Damaged { file: path.to_owned(), reason };
    let mut archive = ZipArchive::new(std::io::BufReader::new(File::open(path)?)).map_err(|e| damaged(e.to_string()))?;
    let mut pickled = None;
    let mut storages = Storages::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index_raw(index).map_err(|error| damaged(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(Error::Unsupported(format!(
                "{} has compressed entries, which torch.save does not write; save it again with torch.save",
                path.display()
            )));
        }
        let name = entry.name().map_err(|error| damaged(error.to_string()))?.into_owned();
        let Some((_, inner)) = name.split_once('/') else {
            continue;
        };
        match inner {
            "data.pkl" => {
                if entry.size() > LONGEST_PICKLE {
                    return Err(damaged(format!("its data.pkl claims {} bytes", entry.size())));
                }
                let mut bytes = Vec::new();
                (&mut entry).take(LONGEST_PICKLE).read_to_end(&mut bytes)?;
                pickled = Some(bytes);
            }
            "byteorder" => {
                let mut order = String::new();
                (&mut entry).take(16).read_to_string(&mut order)?;
                if order.trim() != "little" {
                    return Err(Error::Unsupported(format!("{} is not little-endian", path.display())));
                }
            }
            _ => {
                if let Some(key) = inner.strip_prefix("data/") {
                    let start = entry.data_start().ok_or_else(|| damaged(format!("entry {inner} has no data")))?;
                    storages.insert(key.to_owned(), (start, entry.size()));
                }
            }
        }
    }
    let pickled = pickled.ok_or_else(|| damaged("there is no data.pkl in it, so torch.save did not write it".to_owned()))?;
    let (heap, root, _) = pickle::read(&pickled).map_err(|error| damaged(error.to_string()))?;
    Walk { heap: &heap, store, storages: &storages, path, entries: 0 }.start(root)
}

/// Adds the tensors and plain values of a file from before the zip container: pickles of a magic number, a version,
/// the writing system, the object and the list of storage keys, then each storage as its length and its numbers.
pub(super) fn add_legacy(store: &mut Store, path: &Path) -> Result<(), Error> {
    let damaged = |reason: String| Error::Damaged { file: path.to_owned(), reason };
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // The pickles come first and the numbers follow, so that only the head of the file is needed.
    let mut head = Vec::new();
    (&mut file).take(LONGEST_PICKLE).read_to_end(&mut head)?;
    let mut at = 0;
    let mut parts = Vec::new();
    for _ in 0..5 {
        let (heap, root, used) = pickle::read(&head[at..]).map_err(|error| damaged(error.to_string()))?;
        at += used;
        parts.push((heap, root));
    }
    drop(head);
    let [.., (heap, root), (key_heap, key_root)] = parts.as_slice() else {
        return Err(damaged("too few pickles".to_owned()));
    };
    let Value::List(keys) = key_heap.get(*key_root) else {
        return Err(damaged("it lists no storages".to_owned()));
    };
    let sizes = element_sizes(heap);
    let mut storages = Storages::new();
    let mut at = at as u64;
    for key in keys {
        let key = key_heap.str(*key).ok_or_else(|| damaged("a storage key is no string".to_owned()))?;
        let size = *sizes.get(key).ok_or_else(|| damaged(format!("storage {key} has no known type")))?;
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut count).map_err(|_| damaged("it ends inside its storages".to_owned()))?;
        let bytes = u64::from_le_bytes(count).checked_mul(size).filter(|bytes| at + 8 + bytes.min(&length) <= length);
        let bytes = bytes.ok_or_else(|| damaged(format!("storage {key} reaches past the end of the file")))?;
        storages.insert(key.to_owned(), (at + 8, bytes));
        at += 8 + bytes;
    }
    Walk { heap, store, storages: &storages, path, entries: 0 }.start(*root)
}

/// Bytes per element of each storage that a pickle refers to.
fn element_sizes(heap: &Heap) -> HashMap<&str, u64> {
    heap.values()
        .filter_map(|value| match value {
            Value::Persistent(id) => {
                let (dtype, key) = storage_of(heap, *id)?;
                Some((key, dtype.bitsize() as u64 / 8))
            }
            _ => None,
        })
        .collect()
}

/// Element type and key of a persistent reference `("storage", class, key, device, length)`.
fn storage_of(heap: &Heap, id: Id) -> Option<(Dtype, &str)> {
    let [kind, class, key, ..] = heap.tuple(id)? else {
        return None;
    };
    if heap.str(*kind) != Some("storage") {
        return None;
    }
    let dtype = match heap.global(*class)?.1 {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    };
    Some((dtype, heap.str(*key)?))
}

/// Follows the dictionaries of a pickle and notes every tensor and plain value under its dotted path.
struct Walk<'a> {
    heap: &'a Heap,
    store: &'a mut Store,
    storages: &'a Storages,
    path: &'a Path,
    entries: usize,
}

impl Walk<'_> {
    fn start(mut self, root: Id) -> Result<(), Error> {
        self.store.files.push(self.path.to_owned());
        self.visit("", root, 0)?;
        // Attributes of `torch.nn.Module`.
        let is_module = |name: &str| name.split('.').any(|part| part == "_parameters" || part == "_modules");
        if self.store.tensors.keys().any(|name| is_module(name)) {
            return Err(Error::Unsupported(format!(
                "{} is a whole module, saved by torch.save(model), which only its own Python code can open: save its weights with \
                 torch.save(model.state_dict(), FILE)",
                self.path.display()
            )));
        }
        Ok(())
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Damaged { file: self.path.to_owned(), reason }
    }

    fn visit(&mut self, name: &str, id: Id, depth: usize) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(self.damaged(format!("its dictionaries hold more than {MOST_ENTRIES} entries")));
        }
        let heap = self.heap;
        let scalar = match heap.get(id) {
            Value::Dict(items) => return self.visit_items(name, items, depth),
            Value::Object { class, args, items, state } => {
                if let Some(view) = self.tensor(name, *class, *args)? {
                    return self.store.insert(name, view);
                }
                if let Some((module, function)) = heap.global(*class)
                    && (module.starts_with("torch.") && function.starts_with("_rebuild_")
                        || module.starts_with("numpy.") && function == "_reconstruct")
                {
                    let reason = format!(
                        "is saved by {module}.{function}, which is not read: save it as a plain float32, float16 or bfloat16 tensor"
                    );
                    self.store.unreadable.insert(name.to_owned(), reason);
                    return Ok(());
                }
                self.visit_items(name, items, depth)?;
                // An object's attributes, for example those of `argparse.Namespace`.
                return match state {
                    Some(state) if depth < DEEPEST && matches!(heap.get(*state), Value::Dict(_)) => self.visit(name, *state, depth + 1),
                    _ => Ok(()),
                };
            }
            Value::Bool(value) => Json::from(*value),
            Value::Int(value) => Json::from(*value),
            Value::Float(value) => Json::from(*value),
            Value::Str(value) => Json::from(value.as_str()),
            _ => return Ok(()),
        };
        self.store.scalars.insert(name.to_owned(), scalar);
        Ok(())
    }

    fn visit_items(&mut self, name: &str, items: &[(Id, Id)], depth: usize) -> Result<(), Error> {
        if depth >= DEEPEST {
            return Ok(());
        }
        for (key, value) in items {
            let key = match self.heap.get(*key) {
                Value::Str(key) => key.clone(),
                Value::Int(key) => key.to_string(),
                _ => continue,
            };
            if name.len() + key.len() > LONGEST_NAME {
                return Err(self.damaged(format!("a name is longer than {LONGEST_NAME} bytes")));
            }
            let path = if name.is_empty() { key } else { format!("{name}.{key}") };
            self.visit(&path, *value, depth + 1)?;
        }
        Ok(())
    }

    /// The tensor that a call of PyTorch's rebuilding functions describes; `None` for any other call.
    fn tensor(&self, name: &str, mut class: Id, mut args: Id) -> Result<Option<View>, Error> {
        let malformed = || self.damaged(format!("tensor {name} is described in a way that torch.save does not use"));
        // Parameters wrap a tensor, possibly several times in a hostile file.
        for _ in 0..DEEPEST {
            let Some((module, function)) = self.heap.global(class) else {
                return Ok(None);
            };
            let arguments = self.heap.tuple(args).unwrap_or_default();
            match (module, function, arguments) {
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..]) => {
                    let Value::Object { class: inner, args: inner_args, .. } = self.heap.get(*data) else {
                        return Err(malformed());
                    };
                    (class, args) = (*inner, *inner_args);
                }
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", [storage, ..]) if self.is_unknown_type(*storage) => {
                    return Ok(None);
                }
                ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                    return self.view(*storage, *offset, *shape, *strides).ok_or_else(malformed).map(Some);
                }
                _ => return Ok(None),
            }
        }
        Err(malformed())
    }

    /// Whether a storage is one of PyTorch's, of a type that has no plain conversion (complex and quantised numbers).
    fn is_unknown_type(&self, storage: Id) -> bool {
        let Value::Persistent(id) = self.heap.get(storage) else { return false };
        let Some([_, class, ..]) = self.heap.tuple(*id) else { return false };
        let is_torch = self.heap.global(*class).is_some_and(|(module, name)| module.starts_with("torch") && name.ends_with("Storage"));
        is_torch && storage_of(self.heap, *id).is_none()
    }

    fn view(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Option<View> {
        let Value::Persistent(id) = self.heap.get(storage) else {
            return None;
        };
        let (dtype, key) = storage_of(self.heap, *id)?;
        let (start, bytes) = *self.storages.get(key)?;
        let numbers = |id| self.heap.tuple(id)?.iter().map(|id| self.number(*id)).collect::<Option<Vec<_>>>();
        Some(View {
            file: self.store.files.len() - 1,
            dtype,
            start,
            len: bytes / (dtype.bitsize() as u64 / 8),
            offset: self.number(offset)?,
            shape: numbers(shape)?.into_iter().map(|side| side as usize).collect(),
            strides: numbers(strides)?,
        })
    }

    fn number(&self, id: Id) -> Option<u64> {
        match self.heap.get(id) {
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }
}
