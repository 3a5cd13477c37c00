//! Items: what a collection holds, and the limits that they keep.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{Error, Items, Kind, Spec};
use dino_vision::anomaly::{MAX_STORED, PatchSet};
use dino_vision::duplicates::Fingerprint;
use dino_vision::unicode::nfc;
use dino_vision::unit_rows;

/// Longest id and longest label, in bytes.
pub const MAX_STRING: usize = 512;
/// Most labels of one item.
pub const MAX_LABELS: usize = 64;
/// Largest metadata of one item, as JSON in bytes.
pub const MAX_METADATA: usize = 64 * 1024;
/// Largest stored picture of one item, in bytes.
pub const MAX_THUMBNAIL: usize = 16 * 1024 * 1024;
/// Largest item in its stored form: JSON, in which strings may grow sixfold when it is escaped.
pub(super) const MAX_JSON: usize = 6 * (MAX_STRING * (MAX_LABELS + 2)) + MAX_METADATA + 4096;

/// What is known of an item beside its vector and its picture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Any string of 1 to 512 bytes, unique in its collection. Never used as a path.
    pub id: String,
    /// Classes of the item, in the composed form (NFC); each has an equal share in its vote.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "read_labels")]
    pub labels: Vec<String>,
    /// Data of the client, to keep and to filter by.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// SHA-256 in hex of the file that the vector was made of, where that is known; lets an import skip what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What its copies are known by. None of an item that came as a vector, or was stored by a version that made none.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "fingerprint")]
    pub fingerprint: Option<Box<Fingerprint>>,
}

/// Fingerprints in the JSON of an item: base64. One that cannot be read, such as that of another version, counts as none.
mod fingerprint {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Fingerprint;

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(fingerprint: &Option<Box<Fingerprint>>, serializer: S) -> Result<S::Ok, S::Error> {
        match fingerprint {
            Some(fingerprint) => serializer.serialize_str(&STANDARD.encode(fingerprint.to_bytes())),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Fingerprint>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(text.and_then(|text| Fingerprint::from_bytes(&STANDARD.decode(text).ok()?)).map(Box::new))
    }
}

/// An item as it is passed to [`Collection::upsert`](super::Collection::upsert).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewItem {
    /// Id, labels and metadata.
    pub item: Item,
    /// The vector `[dim]`, of any length; it is normalised to length 1.
    pub vector: Vec<f32>,
    /// A small JPEG of the picture. `None` also removes the one that an earlier version of the item had.
    pub thumbnail: Option<Vec<u8>>,
    /// The [stored form](PatchSet::to_bytes) of its patches, in a collection of patches and only there.
    pub patches: Option<Vec<u8>>,
}

/// An item as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredItem {
    /// Id, labels and metadata.
    pub item: Item,
    /// The vector `[dim]`, length 1.
    pub vector: Vec<f32>,
}

/// What is stored of an item beside its vector.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attached<'a> {
    /// A small JPEG, or the file that it was made of.
    pub picture: Option<&'a [u8]>,
    /// The [stored form](PatchSet::to_bytes) of its patches.
    pub patches: Option<&'a [u8]>,
}

/// An item of a collection of patches.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPatches {
    /// Tells versions of the item apart.
    pub stamp: u64,
    /// Id, labels and metadata.
    pub item: Item,
    /// Its patches.
    pub patches: PatchSet,
}

/// A stored item that cannot be read. It is skipped, and kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its id.
    pub id: String,
    /// What was found.
    pub reason: String,
}

impl NewItem {
    /// Bytes that are stored beside its vector.
    pub(super) fn attached(&self) -> usize {
        [&self.thumbnail, &self.patches].into_iter().flatten().map(Vec::len).sum()
    }
}

impl Item {
    /// About how much memory it takes, in bytes: a number of two characters in the metadata takes sixteen times that.
    pub(super) fn weight(&self) -> usize {
        let labels: usize = self.labels.iter().map(|label| size_of::<String>() + label.len()).sum();
        let fingerprint = self.fingerprint.as_ref().map_or(0, |_| size_of::<Fingerprint>());
        size_of::<Self>() + fingerprint + self.id.len() + labels + weight_of(&self.metadata)
    }

    /// Refuses what breaks a limit, composes labels (NFC) and drops repeated ones (the first stays).
    ///
    /// # Errors
    /// [`Error::InvalidItem`].
    pub fn check(&mut self) -> Result<(), Error> {
        self.labels = set_of(std::mem::take(&mut self.labels));
        let reason = if self.id.is_empty() {
            "an id has at least one byte".to_owned()
        } else if self.id.len() > MAX_STRING {
            format!("an id has at most {MAX_STRING} bytes, this one has {}", self.id.len())
        } else if self.labels.len() > MAX_LABELS {
            format!("an item has at most {MAX_LABELS} labels, this one has {}", self.labels.len())
        } else if self.labels.iter().any(|label| label.is_empty() || label.len() > MAX_STRING) {
            format!("a label has 1 to {MAX_STRING} bytes")
        } else if self.source.as_ref().is_some_and(|source| source.len() > MAX_STRING) {
            format!("a source has at most {MAX_STRING} bytes")
        } else if serde_json::to_vec(&self.metadata).map_or(true, |json| json.len() > MAX_METADATA) {
            format!("metadata has at most {MAX_METADATA} bytes as JSON")
        } else if let Err(reason) = self.check_stored_form() {
            reason
        } else {
            return Ok(());
        };
        Err(Error::InvalidItem { id: self.id.chars().take(MAX_STRING).collect(), reason })
    }

    /// The form in which items are stored and put into snapshots.
    pub(super) fn to_stored_form(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// The item whose stored form this is, or why it cannot be read.
    pub(super) fn from_stored_form(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    }

    /// Whether the stored form can be read back and is this very item: what is accepted must come back, from the store and from
    /// a snapshot.
    pub(super) fn check_stored_form(&self) -> Result<(), String> {
        let json = self.to_stored_form().map_err(|error| format!("it cannot be written as JSON: {error}"))?;
        if json.len() > MAX_JSON {
            return Err(format!("it has at most {MAX_JSON} bytes as JSON, this one has {}", json.len()));
        }
        match serde_json::from_slice::<Self>(&json) {
            Ok(read) if read == *self => Ok(()),
            Ok(_) => Err("its metadata would come back changed from the store".to_owned()),
            Err(_) if depth(&self.metadata) > MAX_DEPTH => {
                Err(format!("metadata nests at most {MAX_DEPTH} deep, this nests {} deep", depth(&self.metadata)))
            }
            Err(error) => Err(format!("its metadata could not be read back from the store: {error}")),
        }
    }
}

/// Deepest metadata that is read back: the reader of JSON takes 127 levels, and the item around it is one.
const MAX_DEPTH: usize = 126;

/// How many objects and lists are inside of each other.
fn depth(metadata: &Map<String, Value>) -> usize {
    fn below<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
        1 + values.map(of).max().unwrap_or(0)
    }
    fn of(value: &Value) -> usize {
        match value {
            Value::Array(values) => below(values.iter()),
            Value::Object(members) => below(members.values()),
            _ => 0,
        }
    }
    below(metadata.values())
}

/// Labels in their composed form, each once.
pub(super) fn set_of(labels: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let composed = labels.into_iter().map(|label| nfc(&label).into_owned());
    composed.filter(|label| seen.insert(label.clone())).collect()
}

/// Labels that an earlier version stored as they came.
fn read_labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Vec::deserialize(deserializer).map(set_of)
}

/// About how much memory the members of an object take, in bytes.
fn weight_of(members: &Map<String, Value>) -> usize {
    fn weight(value: &Value) -> usize {
        size_of::<Value>()
            + match value {
                Value::String(text) => text.len(),
                Value::Array(list) => list.iter().map(weight).sum(),
                Value::Object(members) => weight_of(members),
                Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            }
    }

    members.iter().map(|(name, value)| size_of::<String>() + name.len() + weight(value)).sum()
}

/// Scales `vector` to length 1, or says why that is impossible. `owner` names it in the error.
pub(super) fn normalise(vector: &mut [f32], dim: usize, owner: impl FnOnce() -> String) -> Result<(), Error> {
    if vector.len() != dim {
        return Err(Error::Dimension { owner: owner(), found: vector.len(), wanted: dim });
    }
    let refuse = |reason: String| Err(Error::InvalidVector { owner: owner(), reason });
    if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
        return refuse(format!("number {at} of the vector is {}, only finite numbers can be compared", vector[at]));
    }
    let length = unit_rows::length(&*vector);
    if length == 0.0 {
        return refuse("the vector is all zeros, it has no direction to compare".to_owned());
    }
    // What has length 1 already stays as it is, bit for bit: a vector that was stored once, comes back from a snapshot
    // and is stored again gives the very same answers.
    if (length - 1.0).abs() < 1e-6 {
        return Ok(());
    }
    for x in vector {
        *x = (f64::from(*x) / length) as f32;
    }
    Ok(())
}

/// Whether an item has the patches that its collection asks for, and no others.
pub(super) fn check_patches(patches: Option<&[u8]>, spec: &Spec) -> Result<(), String> {
    match (patches, spec.kind) {
        (None, Kind::Pictures) => Ok(()),
        (Some(patches), Kind::Patches(_)) if patches.len() > MAX_STORED => {
            Err(format!("the patches of a picture have at most {MAX_STORED} bytes, these have {}", patches.len()))
        }
        (Some(patches), Kind::Patches(_)) => PatchSet::check(patches, spec.dim),
        (None, Kind::Patches(_)) => Err("it has no patches, which its collection holds: send the picture".to_owned()),
        (Some(_), Kind::Pictures) => Err("it has patches, which its collection does not hold".to_owned()),
    }
}

/// Checks and normalises items, and keeps the last one of each id.
pub(super) fn prepare(items: Vec<NewItem>, spec: &Spec) -> Result<Vec<NewItem>, Error> {
    let mut last: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut prepared: Vec<NewItem> = Vec::with_capacity(items.len());
    for mut new in items {
        new.item.check()?;
        normalise(&mut new.vector, spec.dim, || format!("item {:?}", new.item.id))?;
        if let Err(reason) = check_patches(new.patches.as_deref(), spec) {
            return Err(Error::InvalidItem { id: new.item.id, reason });
        }
        if new.thumbnail.as_ref().is_some_and(|jpeg| jpeg.len() > MAX_THUMBNAIL) {
            let reason = format!("a stored picture has at most {MAX_THUMBNAIL} bytes");
            return Err(Error::InvalidItem { id: new.item.id, reason });
        }
        // A snapshot has no way to tell a picture without bytes from none.
        new.thumbnail.take_if(|picture| picture.is_empty());
        if let Some(&at) = last.get(&new.item.id) {
            prepared[at] = new;
        } else {
            last.insert(new.item.id.clone(), prepared.len());
            prepared.push(new);
        }
    }
    Ok(prepared)
}

/// Most items of one part, and bytes after which it takes no further ones: other writers of a store wait for one part at a time, and
/// memory holds as much beside what stays.
const PART_ITEMS: usize = 1000;
const PART_BYTES: usize = 4 << 20;

/// The next of many items, as many as are stored in one go; none at the end.
pub(super) fn next_part(items: &mut Items<'_>) -> Result<Vec<NewItem>, Error> {
    let (mut part, mut bytes) = (Vec::new(), 0);
    while part.len() < PART_ITEMS && bytes < PART_BYTES {
        let Some(new) = items.next() else { break };
        let new = new?;
        bytes += new.item.weight() + new.vector.len() * 4 + new.attached();
        part.push(new);
    }
    Ok(part)
}

/// Little-endian bytes of a vector.
pub(super) fn vector_to_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The vector whose little-endian bytes these are.
pub(super) fn vector_from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_without_a_direction_are_refused_by_name() {
        for (bad, word) in [
            (vec![0.0; 3], "zeros"),
            (vec![1.0, f32::NAN, 0.0], "number 1"),
            (vec![1.0, 0.0, f32::INFINITY], "number 2"),
            (vec![1.0; 2], "2 numbers"),
        ] {
            let error = normalise(&mut bad.clone(), 3, || "item \"x\"".to_owned()).unwrap_err().to_string();
            assert!(error.contains("item \"x\"") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn extreme_lengths_are_normalised() {
        for scale in [1e-40_f32, 1e-20, 1.0, 1e20, 3e38] {
            let mut vector = [0.6 * scale, -0.8 * scale];
            normalise(&mut vector, 2, String::new).unwrap();
            // A denormal keeps few digits of its own.
            let tolerance = if scale < 1e-38 { 1e-4 } else { 1e-6 };
            assert!((vector[0] - 0.6).abs() < tolerance && (vector[1] + 0.8).abs() < tolerance, "{scale}: {vector:?}");
        }
    }

    #[test]
    fn a_part_ends_where_its_metadata_takes_much_memory() {
        let metadata: Map<String, Value> = [("text".to_owned(), Value::from("x".repeat(1 << 20)))].into_iter().collect();
        let new = || NewItem { item: Item { id: "x".into(), metadata: metadata.clone(), ..Item::default() }, ..NewItem::default() };
        let mut items = std::iter::repeat_with(|| Ok(new())).take(10);
        assert_eq!(next_part(&mut items).unwrap().len(), PART_BYTES >> 20);
    }

    #[test]
    fn limits_are_kept_and_labels_are_a_set() {
        let item = |id: &str, labels: Vec<String>| Item { id: id.into(), labels, ..Item::default() };
        for mut bad in [
            item("", vec![]),
            item(&"x".repeat(513), vec![]),
            item("x", vec![String::new()]),
            item("x", vec!["y".repeat(513)]),
            item("x", (0..65).map(|i| i.to_string()).collect()),
        ] {
            assert!(matches!(bad.check(), Err(Error::InvalidItem { .. })), "{bad:?}");
        }
        let nested = |levels: usize| {
            let value = (1..levels).fold(Value::Bool(true), |inner, _| Value::Array(vec![inner]));
            Item { metadata: Map::from_iter([("m".to_owned(), value)]), ..item("x", vec![]) }
        };
        nested(126).check().unwrap();
        let refused = nested(127).check().unwrap_err().to_string();
        assert!(refused.contains("at most 126 deep, this nests 127 deep"), "{refused}");
        assert!(Item { source: Some("s".repeat(513)), ..item("x", vec![]) }.check().is_err());
        let mut twice = item("../../etc/passwd", vec!["b".into(), "a".into(), "b".into()]);
        twice.check().unwrap();
        assert_eq!(twice.labels, ["b", "a"]);
    }

    #[test]
    fn labels_that_look_the_same_are_one_and_ids_are_not() {
        let mut item = Item { id: "Tu\u{308}r".into(), labels: vec!["Tu\u{308}r".into(), "Tür".into()], ..Item::default() };
        let stored = serde_json::to_string(&item).unwrap();
        assert_eq!(serde_json::from_str::<Item>(&stored).unwrap().labels, ["Tür"]);
        item.check().unwrap();
        assert_eq!((item.id.as_str(), item.labels), ("Tu\u{308}r", vec!["Tür".to_owned()]));
    }
}
