//! Lists: gone through without building them, or bounded as they are built.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::http::problem::{Code, Problem};

/// Goes through a list without building it, and ends with the first problem. Each element comes with its position.
pub(in crate::http) fn each<'de>(
    list: &'de RawValue,
    each: impl FnMut(usize, &'de RawValue) -> Result<(), Problem>,
) -> Result<(), Problem> {
    // Told here: the parser's own error would repeat the value, whatever its length.
    if !list.get().starts_with('[') {
        return Err(Problem::new(Code::BadParameter, "expected a list"));
    }
    let mut problem = None;
    let elements = Elements { each, problem: &mut problem };
    let outcome = serde_json::Deserializer::from_str(list.get()).deserialize_seq(elements);
    match (problem, outcome) {
        (Some(problem), _) => Err(problem),
        (None, Err(_)) => Err(Problem::new(Code::BadParameter, "expected a list")),
        (None, Ok(())) => Ok(()),
    }
}

struct Elements<'a, F> {
    each: F,
    problem: &'a mut Option<Problem>,
}

impl<'de, F: FnMut(usize, &'de RawValue) -> Result<(), Problem>> Visitor<'de> for Elements<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let mut position = 0;
        while let Some(element) = list.next_element()? {
            if let Err(problem) = (self.each)(position, element) {
                *self.problem = Some(problem);
                return Err(A::Error::custom("see the problem"));
            }
            position += 1;
        }
        Ok(())
    }
}

/// A number of a vector. One that an f32 cannot hold becomes infinite, which collections refuse by its position.
#[derive(Debug)]
pub(in crate::http) struct Component(f32);

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(|number| Self(number as f32))
    }
}

impl<const MOST: usize> AtMost<Component, MOST> {
    /// The numbers, in the same memory.
    pub(in crate::http) fn into_vector(self) -> Vec<f32> {
        self.0.into_iter().map(|component| component.0).collect()
    }
}

/// A list that is refused once it has more than `MOST` elements.
#[derive(Debug)]
pub(in crate::http) struct AtMost<T, const MOST: usize>(pub(in crate::http) Vec<T>);

impl<T, const MOST: usize> Default for AtMost<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(Vec<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = AtMost<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
                while let Some(element) = list.next_element()? {
                    if self.0.len() == MOST {
                        return Err(A::Error::custom(format_args!("at most {MOST} elements")));
                    }
                    self.0.push(element);
                }
                Ok(AtMost(self.0))
            }
        }

        deserializer.deserialize_seq(List(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::http::json::text;

    #[test]
    fn lists_are_gone_through_until_the_first_problem() {
        let list: &RawValue = serde_json::from_str(r#"["a\u0062", 2, {"c": 3}]"#).unwrap();
        let mut found = Vec::new();
        each(list, |position, value| {
            found.push((position, text(value).map(Cow::into_owned)));
            if position == 1 { Err(Problem::new(Code::BadParameter, "two is enough")) } else { Ok(()) }
        })
        .unwrap_err();
        assert_eq!(found, [(0, Some("ab".to_owned())), (1, None)]);
        for no_list in ["7", "\"x\"", "{}"] {
            assert!(each(serde_json::from_str(no_list).unwrap(), |_, _| Ok(())).is_err());
        }
        assert!(serde_json::from_str::<AtMost<u8, 2>>("[1,2,3]").is_err());
        assert_eq!(serde_json::from_str::<AtMost<u8, 2>>("[1,2]").unwrap().0, [1, 2]);
    }
}
