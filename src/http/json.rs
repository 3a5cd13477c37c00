//! JSON bodies, read to the letter and within bounds.
//!
//! What is parsed never takes much more memory than the body. Values are read in place in the body, and only those that are
//! known are built: a member that is not known is refused at its name, lists are bounded as they are read, and depth and strings are
//! measured before. A member that is null counts as one that is absent, whatever its type.

mod list;
mod query;
mod shape;

use std::{borrow::Cow, cell::Cell, fmt};

use axum::{
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::value::RawValue;

use super::{
    App,
    body::{check_encoding, read},
    problem::{Code, Problem},
};
pub(super) use list::{AtMost, Component, each};
use query::QueryValue;
use shape::Shape;

/// Deepest nesting of a body.
const MAX_DEPTH: usize = 128;
/// Longest string of an option in bytes, as it is written. Errors repeat what they find, escaped.
const MAX_STRING: usize = 4096;
/// Longest name of a member in bytes, as it is written. Errors say where they are, and so repeat it.
const MAX_NAME: usize = 4096;
/// Most bytes of an error's message that are formatted: more than an escaped string of [`MAX_STRING`]. An answer repeats less of it.
const CLIPPED: usize = 1 << 16;
/// Longest name of a member that is not known and that an error repeats, in characters.
const MAX_UNKNOWN: usize = 64;

/// A JSON body. No body at all counts as `{}`.
#[derive(Debug)]
pub(super) struct Strict<T>(pub(super) T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<App> for Strict<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let is_announced = is_announced(&parts.headers)?;
        let (body, memory) = read(&parts, body, app.limits.body, &app.bodies).await?;
        if body.is_empty() {
            return parse(b"{}", &[]).map(Self);
        }
        if !is_announced {
            return Err(unannounced());
        }
        // A large body takes long to parse, which other requests must not wait for.
        let parsed = app.pool.run(move || (parse(&body, LONG), memory)).await?;
        parsed.0.map(Self)
    }
}

/// Whether the headers say that the body is JSON; false where they do not say what it is.
///
/// # Errors
/// Where they say that it is something else, or compressed.
pub(super) fn is_announced(headers: &HeaderMap) -> Result<bool, Problem> {
    check_encoding(headers)?;
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(false) };
    let parsed: Option<mime::Mime> = kind.to_str().ok().and_then(|kind| kind.parse().ok());
    if parsed.is_some_and(|kind| kind.subtype() == mime::JSON) {
        return Ok(true);
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("this route takes application/json, not {kind:?}")))
}

/// A body that does not say what it is.
pub(super) fn unannounced() -> Problem {
    Problem::new(Code::UnsupportedMediaType, "the body has no Content-Type: send application/json")
}

/// Members whose strings may be longer than those of other options.
pub(super) const LONG: &[&str] = &["filter", "mask"];

/// Reads an object, and says where it is wrong. Strings in the members `long` may have any length.
pub(super) fn parse<'de, T: Deserialize<'de>>(json: &'de [u8], long: &[&str]) -> Result<T, Problem> {
    object(json, &[], long, &mut [])
}

/// As [`parse`], for an object that has further members: their values are handed back as they are, if they are there. A member that the
/// object does not have is taken from the query.
pub(super) fn parse_beside<'de, T: Deserialize<'de>, const N: usize>(
    json: &'de [u8],
    query: &'de [(String, String)],
    long: &[&str],
    names: [&'static str; N],
) -> Result<(T, [Option<&'de RawValue>; N]), Problem> {
    let mut further = names.map(|name| (name, None));
    let rest = object(json, query, long, &mut further)?;
    Ok((rest, further.map(|(_, value)| value)))
}

fn object<'de, T: Deserialize<'de>>(
    json: &'de [u8],
    query: &'de [(String, String)],
    long: &[&str],
    further: &mut [(&'static str, Option<&'de RawValue>)],
) -> Result<T, Problem> {
    let shape = Shape::of(json);
    if shape.depth > MAX_DEPTH {
        return Err(Problem::new(Code::BadJson, format!("the body is nested more than {MAX_DEPTH} deep")));
    }
    if shape.name > MAX_NAME {
        return Err(Problem::new(Code::BadParameter, format!("the name of a member has more than {MAX_NAME} bytes")));
    }
    if json.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|first| *first != b'{') {
        return Err(Problem::new(Code::BadJson, "the body is no JSON object, such as {\"name\": value}"));
    }
    let is_no_json = Cell::new(false);
    serde_path_to_error::deserialize(Object { json, query, long, further, is_no_json: &is_no_json }).map_err(|error| {
        let code = if error.inner().is_data() && !is_no_json.get() { Code::BadParameter } else { Code::BadJson };
        Problem::new(code, words(&error))
    })
}

/// `k: invalid type…`, or just the reason where it names the option itself.
fn words(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    // Path and reason may both repeat long strings of the request.
    let (path, reason) = (clipped(error.path()), clipped(error.inner()));
    // `.` is the whole body, `?` a member whose name was refused, which the reason repeats.
    if path == "." || path == "?" {
        return reason;
    }
    // Counted from the start of the member's value.
    let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
    // Filters say themselves where in them something is wrong.
    if reason.starts_with(&path) { reason.to_owned() } else { format!("{path}: {reason}") }
}

/// What is written, up to [`CLIPPED`] bytes.
fn clipped(written: impl fmt::Display) -> String {
    struct Clip(String);

    impl fmt::Write for Clip {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let room = CLIPPED - self.0.len();
            let end = (0..=room.min(text.len())).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0);
            self.0.push_str(&text[..end]);
            if end < text.len() { Err(fmt::Error) } else { Ok(()) }
        }
    }

    let mut clip = Clip(String::new());
    // Ends early where it is full.
    let _ = fmt::Write::write_fmt(&mut clip, format_args!("{written}"));
    clip.0
}

/// An object whose members are read one by one out of its JSON.
struct Object<'a, 'de> {
    json: &'de [u8],
    query: &'de [(String, String)],
    long: &'a [&'a str],
    /// Members that are handed back as they are.
    further: &'a mut [(&'static str, Option<&'de RawValue>)],
    /// Set where a value is no JSON after all, such as a number that is too large: errors from within lose their kind.
    is_no_json: &'a Cell<bool>,
}

impl<'de> Deserializer<'de> for Object<'_, 'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let mut text = serde_json::Deserializer::from_slice(self.json);
        let value = text.deserialize_map(Members { known, object: self, visitor })?;
        text.end()?;
        Ok(value)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Hands the members to a visitor that wants them read.
struct Members<'a, 'de, V> {
    known: &'static [&'static str],
    object: Object<'a, 'de>,
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Members<'_, 'de, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let query = self.object.query.iter();
        self.visitor.visit_map(Present { map, known: self.known, object: self.object, value: None, given: Vec::new(), query })
    }
}

/// The members that are known and not null, then those of the query that the body does not have.
struct Present<'a, 'de, A> {
    map: A,
    known: &'static [&'static str],
    object: Object<'a, 'de>,
    /// Of the member whose name was read last.
    value: Option<MemberValue<'de>>,
    /// Members of the body.
    given: Vec<&'static str>,
    query: std::slice::Iter<'de, (String, String)>,
}

enum MemberValue<'de> {
    Body(&'de RawValue),
    Query(&'de str),
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Present<'_, 'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            let names = Name { known: self.known, further: self.object.further };
            let Some(name) = self.map.next_key_seed(names)? else { return self.next_of_query(seed) };
            let value: &'de RawValue = self.map.next_value()?;
            if value.get() == "null" {
                continue;
            }
            if let Some((_, slot)) = self.object.further.iter_mut().find(|(further, _)| *further == name) {
                if slot.replace(value).is_some() {
                    return Err(A::Error::duplicate_field(name));
                }
                continue;
            }
            if !self.object.long.contains(&name) && Shape::of(value.get().as_bytes()).string > MAX_STRING {
                return Err(A::Error::custom(format_args!("{name}: a string has more than {MAX_STRING} bytes")));
            }
            self.given.push(name);
            self.value = Some(MemberValue::Body(value));
            return seed.deserialize(name.into_deserializer()).map(Some);
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let value = match self.value.take().ok_or_else(|| A::Error::custom("a value without a name"))? {
            MemberValue::Body(value) => value,
            MemberValue::Query(text) => return seed.deserialize(QueryValue(text)).map_err(A::Error::custom),
        };
        seed.deserialize(&mut serde_json::Deserializer::from_str(value.get())).map_err(|error| {
            self.object.is_no_json.set(!error.is_data());
            A::Error::custom(error)
        })
    }
}

impl<'de, A: MapAccess<'de>> Present<'_, 'de, A> {
    fn next_of_query<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        for (name, text) in self.query.by_ref() {
            let Some(known) = self.known.iter().find(|known| *known == name) else {
                return Err(unknown_member(name, self.known.iter()));
            };
            // The body counts.
            if !self.given.contains(known) {
                self.value = Some(MemberValue::Query(text));
                return seed.deserialize(known.into_deserializer()).map(Some);
            }
        }
        Ok(None)
    }
}

/// Reads the name of a member that is known.
struct Name<'a, 'de> {
    known: &'static [&'static str],
    further: &'a [(&'static str, Option<&'de RawValue>)],
}

fn unknown_member<'a, E: de::Error>(name: &str, known: impl Iterator<Item = &'a &'static str>) -> E {
    let listed: Vec<_> = known.map(|known| format!("`{known}`")).collect();
    let name: String = name.chars().take(MAX_UNKNOWN).collect();
    E::custom(format!("unknown field `{name}`, expected one of {}", listed.join(", ")))
}

impl<'de> DeserializeSeed<'de> for Name<'_, '_> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_, '_> {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<&'static str, E> {
        let names: Vec<_> = self.further.iter().map(|(name, _)| name).chain(self.known).collect();
        let found = names.iter().find(|known| ***known == name);
        found.map(|known| **known).ok_or_else(|| unknown_member(name, names.into_iter()))
    }
}

/// Reads a member that was handed back as it is. Its strings are short.
pub(super) fn read_member<'de, T: Deserialize<'de>>(name: &str, value: &'de RawValue) -> Result<T, Problem> {
    let refused = |reason: &str| Problem::new(Code::BadParameter, format!("{name}: {reason}"));
    if Shape::of(value.get().as_bytes()).string > MAX_STRING {
        return Err(refused(&format!("a string has more than {MAX_STRING} bytes")));
    }
    serde_json::from_str(value.get()).map_err(|error| {
        let reason = error.to_string();
        refused(reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason))
    })
}

/// The string that a value is, where it is one; not copied where nothing in it is escaped.
pub(super) fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let inside = value.get().strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') { serde_json::from_str(value.get()).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inside)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(default)]
    struct Options {
        k: usize,
        name: Option<String>,
        exact: bool,
    }

    impl Default for Options {
        fn default() -> Self {
            Self { k: 20, name: None, exact: true }
        }
    }

    fn refused(json: &str) -> (Code, String) {
        let problem = parse::<Options>(json.as_bytes(), &[]).unwrap_err();
        (problem.code, problem.detail.into_owned())
    }

    #[test]
    fn null_is_absent() {
        for json in ["{}", r#"{"k":null,"name":null,"exact":null}"#, r#" { "k" : null , "k" : 20 } "#] {
            assert_eq!(parse::<Options>(json.as_bytes(), &[]).unwrap(), Options::default(), "{json}");
        }
        let beside = |json: &'static [u8]| parse_beside::<Options, 1>(json, &[], &[], ["images"]).unwrap();
        let (options, [images]) = beside(br#"{"images":["x"],"k":3}"#);
        assert_eq!((options.k, images.unwrap().get()), (3, r#"["x"]"#));
        assert!(beside(br#"{"images":null}"#).1[0].is_none());
    }

    #[test]
    fn the_query_gives_what_the_body_leaves_out() {
        let query = [("k", "7"), ("name", "x"), ("exact", "false")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let read = |json: &'static str| parse_beside::<Options, 0>(json.as_bytes(), &query, &[], []).unwrap().0;
        assert_eq!(read("{}"), Options { k: 7, name: Some("x".into()), exact: false });
        assert_eq!(read(r#"{"k":3,"name":null}"#), Options { k: 3, name: Some("x".into()), exact: false });
    }

    #[test]
    fn errors_name_the_place_and_stay_short() {
        let long = "\u{7f}".repeat(100_000);
        for (json, code, named) in [
            ("", Code::BadJson, "EOF"),
            ("[]", Code::BadJson, "object"),
            ("null", Code::BadJson, "object"),
            (r#"{"k":1} x"#, Code::BadJson, "trailing"),
            (r#"{"k":1"#, Code::BadJson, "EOF"),
            (r#"{"k":"5"}"#, Code::BadParameter, "k: invalid type: string \"5\""),
            (r#"{"k":1,"k":2}"#, Code::BadParameter, "duplicate field `k`"),
            (r#"{"kk":[[[]]]}"#, Code::BadParameter, "unknown field `kk`, expected one of `k`, `name`, `exact`"),
            (&format!(r#"{{"{long}":1}}"#), Code::BadParameter, "the name of a member"),
            (r#"{"k":1e999}"#, Code::BadJson, "out of range"),
            (&format!(r#"{{"k":"{long}"}}"#), Code::BadParameter, "k: a string has more than"),
            (&format!(r#"{{"k":["{long}"]}}"#), Code::BadParameter, "k: a string has more than"),
            (&format!(r#"{{"k":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000)), Code::BadJson, "deep"),
            (&"[".repeat(10_000), Code::BadJson, "deep"),
        ] {
            let (found, words) = refused(json);
            assert!(found == code && words.contains(named) && words.len() < 1000, "{found:?} {words}");
        }
        assert!(!refused(r#"{"k":"5"}"#).1.contains("line"));
        assert!(refused(r#"{"kk":1}"#).1.starts_with("unknown field"));
    }
}
