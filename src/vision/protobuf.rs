//! Protocol Buffers as far as `TensorBoard`'s events and ONNX files need them: a message is a row of fields, each a key and a value.
//!
//! Reading calls itself nowhere, so that bytes of strangers cannot exhaust the stack.
//!
//! ```
//! use dino_vision::protobuf::{Malformed, fields, message, varint_field};
//!
//! let bytes = [varint_field(1, 300), message(2, b"cat"), message(3, b"dog")].concat();
//! let mut found = fields(&bytes);
//! let first = found.next().ok_or(Malformed)??;
//! assert_eq!((first.number, found.content(&first)), (2, b"cat".as_slice()));
//! assert_eq!(found.map(|field| field.map(|field| field.number)).collect::<Vec<_>>(), [Ok(3)]);
//! # Ok::<(), Malformed>(())
//! ```

use std::ops::Range;

/// Wire type of fields with a length.
const LENGTH_DELIMITED: u64 = 2;

/// The key of a field: its number, and its wire type (how its value is written).
pub fn key(field: u64, wire: u64) -> Vec<u8> {
    varint(field << 3 | wire)
}

/// A field with a whole number.
pub fn varint_field(field: u64, value: u64) -> Vec<u8> {
    [key(field, 0), varint(value)].concat()
}

/// A field with a length: a string, bytes, or a message.
pub fn message(field: u64, content: &[u8]) -> Vec<u8> {
    [header(field, content.len() as u64), content.to_vec()].concat()
}

/// What stands before `length` bytes of a field's content.
pub fn header(field: u64, length: u64) -> Vec<u8> {
    [key(field, LENGTH_DELIMITED), varint(length)].concat()
}

/// Seven bits a byte, lowest first.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A field with a length in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u64,
    /// Where its key starts.
    pub start: usize,
    /// Where its content is.
    pub content: Range<usize>,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The fields with a length of a message, in their order; those of other kinds are skipped. It ends after [`Malformed`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

/// See [`Fields`].
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, at: 0 }
}

impl<'a> Fields<'a> {
    /// The content of one of these fields.
    pub fn content(&self, field: &Field) -> &'a [u8] {
        &self.message[field.content.clone()]
    }

    /// Passes over `length` bytes, and returns where they are.
    fn skip(&mut self, length: u64) -> Result<Range<usize>, Malformed> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let end = end.filter(|end| *end <= self.message.len()).ok_or(Malformed)?;
        Ok(std::mem::replace(&mut self.at, end)..end)
    }

    fn read_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.message.get(self.at).ok_or(Malformed)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// The next field with a length; `None` at the end.
    fn field(&mut self) -> Result<Option<Field>, Malformed> {
        while self.at < self.message.len() {
            let start = self.at;
            let key = self.read_varint()?;
            match key & 7 {
                0 => _ = self.read_varint()?,
                1 => _ = self.skip(8)?,
                LENGTH_DELIMITED => {
                    let length = self.read_varint()?;
                    return Ok(Some(Field { number: key >> 3, start, content: self.skip(length)? }));
                }
                5 => _ = self.skip(4)?,
                // Groups, which nothing writes since proto2.
                _ => return Err(Malformed),
            }
        }
        Ok(None)
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.field();
        if field.is_err() {
            self.at = self.message.len();
        }
        field.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_where_they_were_written() {
        let bytes = [varint_field(1, 300), message(7, b"graph"), vec![5 << 3 | 5, 1, 2, 3, 4], message(7, b"")].concat();
        let found: Vec<_> = fields(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(found[0], Field { number: 7, start: 3, content: 5..10 });
        assert_eq!((found.len(), fields(&bytes).content(&found[0]), &found[1].content), (2, &b"graph"[..], &(17..17)));
    }

    #[test]
    fn what_is_cut_or_of_another_kind_is_malformed() {
        let whole = message(7, b"graph");
        // An end in the key or the length, in the content, a length beyond all memory, a number without an end, a group.
        let huge = [key(7, LENGTH_DELIMITED), varint(u64::MAX)].concat();
        for bytes in [&whole[..1], &whole[..4], &huge, &[0xff; 12], &[7 << 3 | 3, 7 << 3 | 4]] {
            assert_eq!(fields(bytes).collect::<Vec<_>>(), [Err(Malformed)], "{bytes:?}");
        }
    }
}
