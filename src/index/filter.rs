//! Conditions on items, as clients write them in JSON.
//!
//! ```json
//! {"and": [{"field": "label", "in": ["cat", "dog"]}, {"not": {"field": "metadata.year", "lt": 2020}}]}
//! ```
//!
//! - A field is `id`, `label` or `metadata.x`. For `metadata.a.b` the member `a.b` of the metadata counts where it
//!   exists, otherwise the member `b` of its member `a`.
//! - `eq` and `in` hold where one of an item's labels, or one element of a list in its metadata, is equal. Numbers are
//!   compared by value: 1 equals 1.0.
//! - Strings are compared in their composed form (NFC), so that `ü` equals `u` with a mark; ids alone byte by byte, and so are
//!   names of metadata, and strings inside of a list or an object that is compared as a whole.
//! - `gt`, `gte`, `lt` and `lte` compare numbers with numbers and strings with strings (by their bytes). They fail on all
//!   other values, which have no order.
//! - `exists` asks for a value that is there and not null.
//! - Without a value no other test holds, so that its `not` does: `{"not": {"field": "metadata.x", "eq": 1}}` holds for items
//!   that have no `x`, or null.
//!
//! Whatever is not exactly of this form is refused: a condition that was misread would show or delete the wrong items.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::Error;
use super::bounded::Bounded;
use super::item::{Item, MAX_METADATA};
use super::value_set::ValueSet;
use dino_vision::unicode::nfc;

/// Most conditions of one filter: each is looked at for every item that a search meets.
const MAX_CONDITIONS: usize = 256;
/// Most values of one `in`.
const MAX_VALUES: usize = 10_000;
/// Most parts of a path into the metadata.
const MAX_PATH: usize = 32;
/// Deepest nesting of `and`, `or` and `not`.
const MAX_DEPTH: usize = 32;

/// Most memory of a filter's JSON, in bytes: a hundred thousand numbers fit.
const MAX_MEMORY: usize = 7 << 20;

/// A checked condition.
#[derive(Clone, Debug)]
pub struct Filter(pub(super) Node);

/// A condition, or several that are joined.
#[derive(Clone, Debug)]
pub(super) enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Field(Field, Test),
}

/// What a condition looks at.
#[derive(Clone, Debug)]
pub(super) enum Field {
    Id,
    Label,
    /// What comes after `metadata.`.
    Metadata(String),
}

/// What a condition asks of a value.
#[derive(Clone, Debug)]
pub(super) enum Test {
    Eq(Value),
    In(ValueSet),
    /// The order that is asked for, and what is compared with: a number or a string.
    Compare(Order, Value),
    Exists(bool),
}

/// How a value has to compare to the one of the condition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Above,
    AtLeast,
    Below,
    AtMost,
}

impl Order {
    fn passes(self, order: Ordering) -> bool {
        match self {
            Self::Above => order.is_gt(),
            Self::AtLeast => order.is_ge(),
            Self::Below => order.is_lt(),
            Self::AtMost => order.is_le(),
        }
    }
}

impl Filter {
    /// Reads a filter out of JSON.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`] says where and what is wrong.
    pub fn from_json(json: &Value) -> Result<Self, Error> {
        let mut conditions = 0;
        Node::read(json, "filter", 0, &mut conditions).map(Self).map_err(Error::InvalidFilter)
    }

    /// Whether `item` passes.
    pub fn passes(&self, item: &Item) -> bool {
        self.0.passes(item)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |error| Error::InvalidFilter(format!("filter: no JSON that is read: {error}"));
        let mut text = serde_json::Deserializer::from_str(text);
        let json = Bounded::new(&mut MAX_MEMORY.clone()).deserialize(&mut text).map_err(refused)?;
        text.end().map_err(refused)?;
        Self::from_json(&json)
    }
}

impl<'de> Deserialize<'de> for Filter {
    /// From JSON, or from a string that holds the JSON, as in query parameters.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Filter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a filter such as {\"field\": \"label\", \"eq\": \"cat\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Filter, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Filter, A::Error> {
                let json = Bounded::new(&mut MAX_MEMORY.clone()).visit_map(map)?;
                Filter::from_json(&json).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl schemars::JsonSchema for Filter {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Filter".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let filter = generator.subschema_for::<Self>();
        let filters = schemars::json_schema!({ "type": "array", "items": filter });
        let value = schemars::json_schema!({ "type": ["number", "string"] });
        schemars::json_schema!({
            "type": "object",
            "description": "Either `and`, `or` or `not`, or a `field` with one test of its value",
            "additionalProperties": false,
            "properties": {
                "and": filters,
                "or": filters,
                "not": filter,
                "field": { "type": "string", "description": "`id`, `label`, or `metadata.x`" },
                "eq": { "description": "Any value" },
                "in": { "type": "array", "items": {}, "description": "Any values" },
                "gt": value,
                "gte": value,
                "lt": value,
                "lte": value,
                "exists": { "type": "boolean" },
            },
        })
    }
}

impl Node {
    /// `at` is where in the filter this is, for errors.
    fn read(json: &Value, at: &str, depth: usize, conditions: &mut usize) -> Result<Self, String> {
        let Value::Object(members) = json else {
            return Err(format!("{at}: expected an object with `and`, `or`, `not` or `field`"));
        };
        *conditions += 1;
        if *conditions > MAX_CONDITIONS {
            return Err(format!("{at}: a filter has at most {MAX_CONDITIONS} conditions (use `in` for many values of one field)"));
        }
        if depth > MAX_DEPTH {
            return Err(format!("{at}: conditions are nested at most {MAX_DEPTH} deep"));
        }
        if members.contains_key("field") {
            return Self::read_field(members, at);
        }
        let mut members_left = members.iter();
        let (Some((name, value)), None) = (members_left.next(), members_left.next()) else {
            return Err(format!("{at}: expected exactly one of `and`, `or`, `not`, or a `field` with its test"));
        };
        match name.as_str() {
            "and" | "or" => {
                let list = value.as_array().filter(|list| !list.is_empty());
                let list = list.ok_or_else(|| format!("{at}.{name}: expected a list of at least one condition"))?;
                let nodes = list.iter().enumerate().map(|(i, json)| Self::read(json, &format!("{at}.{name}[{i}]"), depth + 1, conditions));
                let nodes = nodes.collect::<Result<_, _>>()?;
                Ok(if name == "and" { Self::And(nodes) } else { Self::Or(nodes) })
            }
            "not" => Ok(Self::Not(Box::new(Self::read(value, &format!("{at}.not"), depth + 1, conditions)?))),
            other => Err(format!("{at}: unknown member {}; expected `and`, `or`, `not` or `field`", short(other))),
        }
    }

    fn read_field(members: &Map<String, Value>, at: &str) -> Result<Self, String> {
        let named = members["field"].as_str().ok_or_else(|| format!("{at}.field: expected a string"))?;
        let field = match named {
            "id" => Field::Id,
            "label" => Field::Label,
            _ => match named.strip_prefix("metadata.") {
                Some(path) if path.split('.').count() > MAX_PATH => {
                    return Err(format!("{at}.field: a path has at most {MAX_PATH} parts between its dots"));
                }
                Some(path) if !path.is_empty() => Field::Metadata(path.to_owned()),
                _ => return Err(format!("{at}.field: expected `id`, `label` or `metadata.x`, not {}", short(named))),
            },
        };
        let mut tests = members.iter().filter(|(name, _)| *name != "field");
        let (Some((name, value)), None) = (tests.next(), tests.next()) else {
            return Err(format!("{at}: a field has exactly one of eq, in, gt, gte, lt, lte, exists (join several with `and`)"));
        };
        // Nothing that is stored is as long, and the string would be copied several times.
        if value.as_str().is_some_and(|text| text.len() > MAX_METADATA) {
            return Err(format!("{at}: a string to compare with has at most {MAX_METADATA} bytes"));
        }
        let value = if matches!(field, Field::Id) { Cow::Borrowed(value) } else { composed(name, value) };
        let test = Test::read(name, &value).map_err(|reason| format!("{at}.{}: {reason}", name.chars().take(64).collect::<String>()))?;
        Ok(Self::Field(field, test))
    }

    fn passes(&self, item: &Item) -> bool {
        match self {
            Self::And(nodes) => nodes.iter().all(|node| node.passes(item)),
            Self::Or(nodes) => nodes.iter().any(|node| node.passes(item)),
            Self::Not(node) => !node.passes(item),
            Self::Field(Field::Id, test) => test.matches_string(&item.id),
            Self::Field(Field::Label, Test::Exists(wanted)) => item.labels.is_empty() != *wanted,
            // Labels of items are composed.
            Self::Field(Field::Label, test) => item.labels.iter().any(|label| test.matches_string(label)),
            Self::Field(Field::Metadata(path), test) => test.matches_value(find(&item.metadata, path)),
        }
    }
}

/// The member that `path` names.
fn find<'a>(object: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    object.get(path).or_else(|| {
        let (first, rest) = path.split_once('.')?;
        find(object.get(first)?.as_object()?, rest)
    })
}

impl Test {
    fn read(name: &str, value: &Value) -> Result<Self, String> {
        let compare = |order| match value {
            Value::Number(_) | Value::String(_) => Ok(Self::Compare(order, value.clone())),
            _ => Err("expected a number or a string".to_owned()),
        };
        match name {
            "eq" => Ok(Self::Eq(value.clone())),
            "in" => {
                let list = value.as_array().ok_or("expected a list of values")?;
                if list.len() > MAX_VALUES {
                    return Err(format!("at most {MAX_VALUES} values, not {}", list.len()));
                }
                Ok(Self::In(ValueSet::new(list)))
            }
            "gt" => compare(Order::Above),
            "gte" => compare(Order::AtLeast),
            "lt" => compare(Order::Below),
            "lte" => compare(Order::AtMost),
            "exists" => value.as_bool().map(Self::Exists).ok_or_else(|| "expected true or false".to_owned()),
            _ => Err("unknown test; there are eq, in, gt, gte, lt, lte and exists".to_owned()),
        }
    }

    /// For a field that is always a string.
    fn matches_string(&self, found: &str) -> bool {
        match self {
            Self::Eq(wanted) => wanted.as_str() == Some(found),
            Self::In(values) => values.has_string(found),
            Self::Compare(order, with) => with.as_str().is_some_and(|with| order.passes(found.cmp(with))),
            Self::Exists(wanted) => *wanted,
        }
    }

    fn matches_value(&self, found: Option<&Value>) -> bool {
        match (self, found) {
            (Self::Exists(wanted), found) => found.is_some_and(|found| !found.is_null()) == *wanted,
            (_, None) => false,
            (Self::Eq(wanted), Some(found)) => is_value(found, wanted) || elements(found).iter().any(|found| is_value(found, wanted)),
            (Self::In(values), Some(found)) => values.has(found) || elements(found).iter().any(|found| values.has(found)),
            (Self::Compare(wanted, with), Some(found)) => match (found, with) {
                (Value::String(found), Value::String(with)) => wanted.passes(nfc(found).as_ref().cmp(with)),
                (Value::Number(found), Value::Number(with)) => order(found, with).is_some_and(|order| wanted.passes(order)),
                _ => false,
            },
        }
    }
}

/// The value of a test with its strings composed: one, or those of the list of `in`.
fn composed<'a>(name: &str, value: &'a Value) -> Cow<'a, Value> {
    let text = |value: &Value| match value {
        Value::String(text) => Value::String(nfc(text).into_owned()),
        other => other.clone(),
    };
    match value {
        Value::String(_) => Cow::Owned(text(value)),
        // Too long a list is refused, and need not be copied for that.
        Value::Array(values) if name == "in" && values.len() <= MAX_VALUES => Cow::Owned(values.iter().map(text).collect()),
        other => Cow::Borrowed(other),
    }
}

/// Whether a value, or the element of a list, is the one that is wanted.
fn is_value(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::String(found), Value::String(wanted)) => nfc(found) == *wanted,
        _ => equal(found, wanted),
    }
}

fn elements(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => order(a, b) == Some(Ordering::Equal),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| equal(value, other)))
        }
        _ => a == b,
    }
}

/// Whole numbers exactly, others as f64.
fn order(a: &serde_json::Number, b: &serde_json::Number) -> Option<Ordering> {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// A name that a client sent, never megabytes of it.
fn short(name: &str) -> String {
    format!("{:?}", name.chars().take(64).collect::<String>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item() -> Item {
        let metadata =
            json!({ "year": 2021, "score": 0.5, "tags": ["red", 3], "a": { "b": "deep" }, "x.y": true, "none": null, "big": u64::MAX });
        let Value::Object(metadata) = metadata else { unreachable!() };
        Item { id: "pets/1.jpg".into(), labels: vec!["cat".into(), "pet".into()], metadata, ..Item::default() }
    }

    fn passes(filter: &Value) -> bool {
        Filter::from_json(filter).unwrap().passes(&item())
    }

    #[test]
    fn tests_hold_where_they_should() {
        for filter in [
            json!({ "field": "id", "eq": "pets/1.jpg" }),
            json!({ "field": "id", "gt": "pets/0" }),
            json!({ "field": "id", "in": ["z", "pets/1.jpg", "a", 7] }),
            json!({ "field": "label", "eq": "pet" }),
            json!({ "field": "label", "in": ["dog", "cat"] }),
            json!({ "field": "label", "exists": true }),
            json!({ "field": "metadata.year", "eq": 2021.0 }),
            json!({ "field": "metadata.year", "gte": 2021 }),
            json!({ "field": "metadata.year", "lt": 2021.5 }),
            json!({ "field": "metadata.score", "lte": 0.5 }),
            json!({ "field": "metadata.tags", "eq": "red" }),
            json!({ "field": "metadata.tags", "in": [3] }),
            json!({ "field": "metadata.tags", "eq": ["red", 3] }),
            json!({ "field": "metadata.a.b", "eq": "deep" }),
            json!({ "field": "metadata.x.y", "eq": true }),
            json!({ "field": "metadata.none", "exists": false }),
            json!({ "field": "metadata.none", "eq": null }),
            json!({ "field": "metadata.big", "gt": u64::MAX - 1 }),
            json!({ "not": { "field": "metadata.absent", "eq": 1 } }),
            json!({ "and": [{ "field": "label", "eq": "cat" }, { "or": [{ "field": "id", "eq": "x" }, { "field": "label", "eq": "pet" }] }] }),
        ] {
            assert!(passes(&filter), "{filter}");
        }
        for filter in [
            json!({ "field": "id", "eq": 1 }),
            json!({ "field": "id", "exists": false }),
            json!({ "field": "label", "in": [] }),
            json!({ "field": "label", "exists": false }),
            json!({ "field": "metadata.year", "eq": "2021" }),
            json!({ "field": "metadata.year", "gt": "2000" }),
            json!({ "field": "metadata.big", "lt": u64::MAX }),
            json!({ "field": "metadata.absent", "lt": 5 }),
            json!({ "field": "metadata.absent", "exists": true }),
            json!({ "not": { "field": "label", "eq": "cat" } }),
            json!({ "and": [{ "field": "label", "eq": "cat" }, { "field": "label", "eq": "dog" }] }),
        ] {
            assert!(!passes(&filter), "{filter}");
        }
    }

    #[test]
    fn strings_are_compared_in_their_composed_form_and_ids_are_not() {
        let (composed, decomposed) = ("Tür", "Tu\u{308}r");
        for (stored, other) in [(composed, decomposed), (decomposed, composed)] {
            let Value::Object(metadata) = json!({ "x": stored, "list": [1, stored] }) else { unreachable!() };
            let mut item = Item { id: stored.into(), labels: vec![stored.into()], metadata, ..Item::default() };
            item.check().unwrap();
            for filter in [
                json!({ "field": "label", "eq": other }),
                json!({ "field": "label", "in": ["a", other] }),
                json!({ "field": "label", "gte": other }),
                json!({ "field": "label", "lte": other }),
                json!({ "field": "metadata.x", "eq": other }),
                json!({ "field": "metadata.x", "in": [1, other] }),
                json!({ "field": "metadata.x", "gte": other }),
                json!({ "field": "metadata.x", "lte": other }),
                json!({ "field": "metadata.list", "eq": other }),
                json!({ "field": "metadata.list", "in": [other] }),
                json!({ "field": "id", "eq": stored }),
                json!({ "not": { "field": "id", "eq": other } }),
                json!({ "not": { "field": "metadata.list", "eq": [1, other] } }),
            ] {
                assert!(Filter::from_json(&filter).unwrap().passes(&item), "{filter}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused_where_it_stands() {
        let deep = (0..40).fold(json!({ "field": "id", "eq": "x" }), |inner, _| json!({ "not": inner }));
        let wide = json!({ "or": vec![json!({ "field": "id", "eq": "x" }); MAX_CONDITIONS] });
        for (filter, words) in [
            (json!({}), "filter: expected exactly one"),
            (json!([]), "filter: expected an object"),
            (json!({ "field": "label" }), "exactly one of eq"),
            (json!({ "field": "label", "eq": 1, "in": [] }), "exactly one of eq"),
            (json!({ "field": "labels", "eq": 1 }), "\"labels\""),
            (json!({ "field": "metadata.", "eq": 1 }), "metadata.x"),
            (json!({ "field": 7, "eq": 1 }), "filter.field"),
            (json!({ "and": [] }), "filter.and"),
            (json!({ "or": [{ "not": { "field": "id", "like": "x" } }] }), "filter.or[0].not.like"),
            (json!({ "and": [{ "field": "id", "eq": "x" }], "or": [] }), "exactly one"),
            (json!({ "nor": [] }), "\"nor\""),
            (json!({ "field": "id", "in": "x" }), "filter.in"),
            (json!({ "field": "metadata.x", "gt": null }), "number or a string"),
            (json!({ "field": "metadata.x", "exists": 1 }), "true or false"),
            (deep, "deep"),
            (wide, "at most 256"),
        ] {
            let error = Filter::from_json(&filter).unwrap_err().to_string();
            assert!(error.contains(words), "{filter}: {error}");
        }
        assert!("{".parse::<Filter>().is_err());
    }
}
