//! Protocol Buffers as far as `TensorBoard`'s events and ONNX files need them: a message is a row of fields, each a key and a value.

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

/// Where the key of a field of bytes starts in a message, and where its content is.
pub fn field_of(message: &[u8], field: u64) -> Option<(usize, Range<usize>)> {
    let mut at = 0;
    while at < message.len() {
        let start = at;
        let key = read_varint(message, &mut at)?;
        match key & 7 {
            0 => _ = read_varint(message, &mut at)?,
            2 => {
                let length = read_varint(message, &mut at)? as usize;
                if key >> 3 == field {
                    return Some((start, at..at + length));
                }
                at += length;
            }
            _ => return None,
        }
    }
    None
}

fn read_varint(message: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *message.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
