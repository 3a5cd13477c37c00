//! The shape of a JSON document, measured before it is parsed.

use memchr::memchr2;

/// How deep JSON is nested, and how long its longest string and its longest name are, in bytes. Of what is no JSON the numbers mean nothing.
pub(super) struct Shape {
    pub(super) depth: usize,
    pub(super) string: usize,
    pub(super) name: usize,
}

impl Shape {
    pub(super) fn of(json: &[u8]) -> Self {
        let (mut shape, mut depth, mut at) = (Self { depth: 0, string: 0, name: 0 }, 0_usize, 0);
        // Of the string that ended last.
        let mut last = 0;
        while let Some(byte) = json.get(at) {
            at += 1;
            match byte {
                b'{' | b'[' => {
                    depth += 1;
                    shape.depth = shape.depth.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' => {
                    let start = at;
                    at = end_of_string(json, at);
                    last = at - start;
                    shape.string = shape.string.max(last);
                }
                b':' => shape.name = shape.name.max(last),
                _ => {}
            }
        }
        shape
    }
}

/// The position after the quote that ends the string which begins at `at`.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while let Some(found) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn brackets_in_texts_are_no_depth() {
        let shape = Shape::of(br#"{"a[[[":["\"[{\\",{"b":"]"}]}"#);
        assert_eq!((shape.depth, shape.string, shape.name), (3, 7, 5));
        assert_eq!(Shape::of(br#""\"#).string, 1);
    }
}
