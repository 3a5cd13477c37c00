//! The values of an `in`, sorted once, so that each item is compared with ten thousand of them as fast as with a few.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use serde_json::{Number, Value};

use super::filter::equal;
use dino_vision::unicode::nfc;

/// A set of JSON values. Numbers are equal by value: 1 and 1.0 are one.
#[derive(Clone, Debug, Default)]
pub(super) struct ValueSet {
    /// Sorted, for ids and classes by the thousand.
    strings: Vec<String>,
    /// Integers and all other numbers, each sorted. They are compared exactly among themselves, and as floats across.
    integers: Vec<i128>,
    floats: Vec<f64>,
    /// Lists, objects, truth values and null, by [`hash`].
    others: HashMap<u64, Vec<Value>>,
    /// Its keys are random: a client cannot choose values that collide, but for numbers in lists that are one as floats.
    hasher: RandomState,
}

impl ValueSet {
    pub(super) fn new(values: &[Value]) -> Self {
        let mut all = Self::default();
        for value in values {
            match value {
                Value::String(text) => all.strings.push(text.clone()),
                Value::Number(number) => match number.as_i128() {
                    Some(whole) => all.integers.push(whole),
                    None => all.floats.extend(float(number)),
                },
                other => {
                    let same = all.others.entry(hash(&all.hasher, other)).or_default();
                    if !same.contains(other) {
                        same.push(other.clone());
                    }
                }
            }
        }
        all.strings.sort_unstable();
        all.strings.dedup();
        all.integers.sort_unstable();
        all.integers.dedup();
        all.floats.sort_unstable_by(f64::total_cmp);
        all.floats.dedup();
        all
    }

    pub(super) fn has_string(&self, found: &str) -> bool {
        self.strings.binary_search_by(|text| text.as_str().cmp(found)).is_ok()
    }

    pub(super) fn has(&self, found: &Value) -> bool {
        match found {
            // Those that are wanted are composed.
            Value::String(found) => self.has_string(&nfc(found)),
            Value::Number(found) => self.has_number(found),
            found => {
                // Most sets have none, and hashing costs as much as the value is long.
                !self.others.is_empty()
                    && self.others.get(&hash(&self.hasher, found)).is_some_and(|same| same.iter().any(|value| equal(found, value)))
            }
        }
    }

    fn has_number(&self, found: &Number) -> bool {
        let Some(as_float) = float(found) else { return false };
        let is_float = self.floats.binary_search_by(|float| float.total_cmp(&as_float)).is_ok();
        is_float
            || match found.as_i128() {
                Some(whole) => self.integers.binary_search(&whole).is_ok(),
                // The order of integers is that of their floats, with runs of equal ones.
                None => self.integers.binary_search_by(|whole| (*whole as f64).total_cmp(&as_float)).is_ok(),
            }
    }

    #[cfg(any(test, feature = "postgres"))]
    pub(super) fn strings(&self) -> &[String] {
        &self.strings
    }

    /// All values but the strings.
    #[cfg(any(test, feature = "postgres"))]
    pub(super) fn others(&self) -> impl Iterator<Item = Value> + '_ {
        let integers = self.integers.iter().filter_map(|&whole| Number::from_i128(whole)).map(Value::Number);
        let floats = self.floats.iter().filter_map(|&float| Number::from_f64(float)).map(Value::Number);
        integers.chain(floats).chain(self.others.values().flatten().cloned())
    }
}

/// A number as a float, with one zero.
fn float(number: &Number) -> Option<f64> {
    number.as_f64().map(|float| float + 0.0)
}

/// The same for values that are [`equal`].
fn hash(hasher: &RandomState, value: &Value) -> u64 {
    let mut state = hasher.build_hasher();
    match value {
        Value::Null => state.write_u8(0),
        Value::Bool(value) => (1_u8, value).hash(&mut state),
        Value::Number(number) => (2_u8, float(number).map(f64::to_bits)).hash(&mut state),
        Value::String(text) => (3_u8, text).hash(&mut state),
        Value::Array(list) => {
            (4_u8, list.len()).hash(&mut state);
            for value in list {
                state.write_u64(hash(hasher, value));
            }
        }
        Value::Object(members) => {
            // In no order.
            let sum = members.iter().map(|(name, value)| hasher.hash_one((name, hash(hasher, value))));
            (5_u8, members.len(), sum.fold(0_u64, u64::wrapping_add)).hash(&mut state);
        }
    }
    state.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_equal_to_a_value_is_among_them_and_nothing_else() {
        let far = 9_007_199_254_740_993_u64;
        let samples = json!([
            null, true, false, 0, -0.0, 1, 1.0, 1.5, -7, 1e300, far, far - 1, (far - 1) as f64, u64::MAX, u64::MAX as f64, i64::MIN,
            "", "a", "1", [], [1], [1.0], [1, "a"], [0.0], [-0.0], [null], {}, {"a": 1}, {"a": 1.0}, {"a": 1, "b": [2]}, {"b": [2.0], "a": 1},
        ]);
        let samples = samples.as_array().unwrap();
        for (at, wanted) in samples.iter().enumerate() {
            // Alone, and among all that come before it.
            for set in [std::slice::from_ref(wanted), &samples[..=at]] {
                let values = ValueSet::new(set);
                for found in samples {
                    let expected = set.iter().any(|value| equal(found, value));
                    assert_eq!(values.has(found), expected, "{found} in {set:?}");
                }
                let again: Vec<_> = values.strings().iter().map(|text| json!(text)).chain(values.others()).collect();
                assert!(set.iter().all(|value| again.iter().any(|other| equal(value, other))), "{set:?} became {again:?}");
            }
        }
    }
}
