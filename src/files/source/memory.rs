//! Memory behind arrays of Arrow.

use std::collections::HashMap;

use arrow_array::{Array, ArrayRef};
use arrow_buffer::NullBuffer;

/// Bytes that arrays keep in memory. A buffer that several of them have parts of counts once, as a whole: the columns of a record batch are
/// parts of the message that they came in.
pub(in crate::files) fn bytes<'a>(arrays: impl IntoIterator<Item = &'a ArrayRef>) -> u64 {
    let mut buffers = HashMap::new();
    let mut open: Vec<_> = arrays.into_iter().map(Array::to_data).collect();
    while let Some(data) = open.pop() {
        for buffer in data.buffers().iter().chain(data.nulls().map(NullBuffer::buffer)) {
            // Memory that the Arrow library did not set aside has no capacity.
            buffers.insert(buffer.data_ptr(), buffer.capacity().max(buffer.len()) as u64);
        }
        open.extend(data.child_data().iter().cloned());
    }
    buffers.values().sum()
}
