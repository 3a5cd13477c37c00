//! JSON values of clients, read within a bound on the memory that they take.
//!
//! A value takes much more memory than its JSON: a list of `0,` sixteen times as much, a list of `{"":0}` a hundred times. So the memory
//! of the values is counted while they are read, and reading stops at the bound.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What a value takes in a list, which grows by doubling.
const VALUE: usize = 2 * size_of::<Value>();
/// What an object takes with its first member: a node of a tree has room for eleven.
const OBJECT: usize = 11 * (size_of::<String>() + size_of::<Value>());
/// What each further member takes, in nodes that are half full.
const MEMBER: usize = 2 * (size_of::<String>() + size_of::<Value>());
/// What a string takes beside its bytes.
const STRING: usize = 32;

/// Reads one value of any form, in whose objects no name comes twice.
pub struct Bounded<'a> {
    /// Bytes that may still be taken.
    left: &'a mut usize,
}

impl<'a> Bounded<'a> {
    /// A reader that takes what it needs out of `left`, in bytes, and ends with an error where that is too little.
    pub fn new(left: &'a mut usize) -> Self {
        Self { left }
    }

    fn take<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        *self.left = self.left.checked_sub(bytes).ok_or_else(|| E::custom("too many members, values or strings"))?;
        Ok(())
    }

    fn string<E: Error>(&mut self, string: &str) -> Result<String, E> {
        self.take(string.len() + STRING)?;
        Ok(string.to_owned())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<Value, E> {
        self.string(value).map(Value::String)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(Bounded::new(self.left))? {
            self.take(VALUE)?;
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key_seed(Name(Bounded::new(self.left)))? {
            self.take(if object.is_empty() { OBJECT } else { MEMBER })?;
            let value = map.next_value_seed(Bounded::new(self.left))?;
            // Of two values only one could be kept.
            if object.contains_key(&name) {
                let name: String = name.chars().take(64).collect();
                return Err(A::Error::custom(format_args!("the name `{name}` comes twice in one object")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// Reads the name of a member.
struct Name<'a>(Bounded<'a>);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(mut self, name: &str) -> Result<String, E> {
        self.0.string(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, mut left: usize) -> Result<(Value, usize), serde_json::Error> {
        let before = left;
        let value = Bounded::new(&mut left).deserialize(&mut serde_json::Deserializer::from_str(text))?;
        Ok((value, before - left))
    }

    #[test]
    fn values_come_out_as_they_are() {
        let text = r#"{"a":[1,-2,0.5,true,null,"é\n"],"":{"b":{}},"a2":18446744073709551615}"#;
        let (value, taken) = read(text, 1 << 20).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        assert!(taken > 1000);
        assert!(read(r#"{"x":[{"a":1,"a":1}]}"#, 1 << 20).unwrap_err().to_string().contains("`a` comes twice"));
    }

    #[test]
    fn what_would_take_much_is_not_read() {
        for (text, most) in [("0,", 100), ("\"\",", 100), ("[],", 100), ("{\"\":0},", 1500), ("\"xxxxxxxxxxxxxxxx\",", 150)] {
            let list = format!("[{}0]", text.repeat(1000));
            assert!(read(&list, 64 * 100).is_err(), "{text}");
            assert!(read(&list, most * 1001).is_ok(), "{text}");
        }
    }
}
