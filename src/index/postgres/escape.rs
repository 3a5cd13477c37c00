//! Strings as the database keeps them: PostgreSQL's `text` and `jsonb` hold every character but U+0000, which ids, labels and
//! metadata may have.
//!
//! U+0000 becomes U+0001 U+0001 and U+0001 becomes U+0001 U+0002. Two strings that differ stay different, and their order by
//! bytes stays the same, so that conditions can be left to the database.

use std::borrow::Cow;

use serde_json::{Map, Value};

const NUL: char = '\0';
const ESCAPE: char = '\u{1}';

/// The form that is stored.
pub(super) fn to_stored(text: &str) -> Cow<'_, str> {
    if !text.contains([NUL, ESCAPE]) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(ESCAPE, "\u{1}\u{2}").replace(NUL, "\u{1}\u{1}"))
}

/// The string whose stored form this is.
pub(super) fn from_stored(stored: String) -> String {
    if !stored.contains(ESCAPE) {
        return stored;
    }
    let mut text = String::with_capacity(stored.len());
    let mut characters = stored.chars();
    while let Some(character) = characters.next() {
        match character {
            ESCAPE if characters.next() == Some(ESCAPE) => text.push(NUL),
            other => text.push(other),
        }
    }
    text
}

/// [`to_stored`] for every string in a JSON value.
pub(super) fn json_to_stored(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(to_stored(text).into_owned()),
        Value::Array(values) => values.iter().map(json_to_stored).collect(),
        Value::Object(members) => Value::Object(object_to_stored(members)),
        other => other.clone(),
    }
}

/// [`to_stored`] for every name and string in a JSON object.
pub(super) fn object_to_stored(members: &Map<String, Value>) -> Map<String, Value> {
    members.iter().map(|(name, value)| (to_stored(name).into_owned(), json_to_stored(value))).collect()
}

/// The object whose stored form this is.
pub(super) fn object_from_stored(members: Map<String, Value>) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (from_stored(name), json_from_stored(value))).collect()
}

fn json_from_stored(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(from_stored(text)),
        Value::Array(values) => values.into_iter().map(json_from_stored).collect(),
        Value::Object(members) => Value::Object(object_from_stored(members)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// All strings of up to four of the characters that matter.
    fn strings() -> Vec<String> {
        let mut strings = vec![String::new()];
        for length in 0..4 {
            let longer: Vec<_> = strings.iter().filter(|text| text.chars().count() == length).cloned().collect();
            strings.extend(longer.iter().flat_map(|text| ['\0', '\u{1}', '\u{2}', 'a'].map(|next| format!("{text}{next}"))));
        }
        strings
    }

    #[test]
    fn every_string_comes_back_and_keeps_its_place() {
        let strings = strings();
        for a in &strings {
            let stored = to_stored(a);
            assert!(!stored.contains('\0'));
            assert_eq!(&from_stored(stored.clone().into_owned()), a);
            for b in &strings {
                assert_eq!(stored.cmp(&to_stored(b)), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn json_comes_back() {
        let value = json!({ "a\0": ["\0", { "\u{1}": "x", "n": 1.5 }], "b": null });
        let Value::Object(members) = value else { unreachable!() };
        assert_eq!(object_from_stored(object_to_stored(&members)), members);
    }
}
