//! Pickles of plain data, such as lists of names and numbers, as JSON.
//!
//! ```
//! use dino_train::weights::plain_pickle::read;
//!
//! // What `pickle.dumps({"cat": [1, 2]}, protocol=2)` gives in Python.
//! let pickle = b"\x80\x02}q\x00X\x03\x00\x00\x00catq\x01]q\x02(K\x01K\x02es.";
//! assert_eq!(read(pickle)?, serde_json::json!({"cat": [1, 2]}));
//! # Ok::<(), dino_train::weights::plain_pickle::NotPlain>(())
//! ```

use serde_json::{Map, Value as Json};

use super::pickle::{self, Heap, Id, Value};

/// Most values, and bytes of strings, of a pickle once shared ones are repeated.
const MOST_VALUES: usize = 20_000_000;
/// How deep values may lie in each other.
const MOST_DEPTH: usize = 16;

/// Why a pickle has no form in JSON.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotPlain(String);

/// Reads a pickle of dictionaries with strings as keys, lists, tuples, strings, numbers and truth values. Nothing in it is executed.
///
/// # Errors
/// Where it holds anything else, such as arrays of NumPy, or more than memory should be spent on.
pub fn read(bytes: &[u8]) -> Result<Json, NotPlain> {
    let (heap, root, _) = pickle::read(bytes).map_err(|error| NotPlain(error.to_string()))?;
    Reader { heap, left: MOST_VALUES }.json(root, 0)
}

struct Reader {
    heap: Heap,
    left: usize,
}

impl Reader {
    fn json(&mut self, id: Id, depth: usize) -> Result<Json, NotPlain> {
        let refused = |what: &str| Err(NotPlain(what.to_owned()));
        if depth > MOST_DEPTH {
            return refused("its values lie too deep in each other");
        }
        let cost = match self.heap.get(id) {
            Value::Str(text) => 1 + text.len(),
            Value::Dict(pairs) => 1 + pairs.iter().map(|(key, _)| self.heap.str(*key).map_or(0, str::len)).sum::<usize>(),
            _ => 1,
        };
        let Some(left) = self.left.checked_sub(cost) else { return refused("it has too many values") };
        self.left = left;
        match self.heap.get(id).clone() {
            Value::None => Ok(Json::Null),
            Value::Bool(value) => Ok(value.into()),
            Value::Int(value) => Ok(value.into()),
            Value::Float(value) => Ok(value.into()),
            Value::Str(text) => Ok(Json::String(text)),
            Value::Tuple(items) | Value::List(items) => items.into_iter().map(|item| self.json(item, depth + 1)).collect(),
            Value::Dict(pairs) => {
                let mut object = Map::new();
                for (key, value) in pairs {
                    let Some(name) = self.heap.str(key).map(str::to_owned) else { return refused("a key of a dictionary is no string") };
                    let value = self.json(value, depth + 1)?;
                    object.insert(name, value);
                }
                Ok(Json::Object(object))
            }
            Value::Object { .. } | Value::Global { .. } | Value::Persistent(_) | Value::Opaque => {
                refused("it holds objects that are not plain numbers, strings, lists and dictionaries")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn plain_data_is_read_and_the_rest_refused() {
        // {"a": [1, (True, None), "b"]}, protocol 2
        let pickle = b"\x80\x02}X\x01\x00\x00\x00a](K\x01\x88N\x86X\x01\x00\x00\x00bes.";
        assert_eq!(read(pickle).unwrap(), serde_json::json!({"a": [1, [true, null], "b"]}));
        assert!(read(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap_err().to_string().contains("not plain"));
        // A list that holds itself.
        assert!(read(b"\x80\x02]q\x00h\x00a.").unwrap_err().to_string().contains("too deep"));
        assert!(read(b"\x80\x02}K\x01K\x02s.").unwrap_err().to_string().contains("key"));
        assert!(read(b"no pickle").is_err());
        // A string of a megabyte, which thirty places share.
        let mut shared = b"\x80\x02](X\x00\x00\x10\x00".to_vec();
        shared.resize(shared.len() + (1 << 20), b'a');
        shared.extend(b"q\x00");
        shared.extend(b"h\x00".repeat(29));
        shared.extend(b"e.");
        assert!(read(&shared).unwrap_err().to_string().contains("too many"));
    }
}
