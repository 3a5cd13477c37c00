//! Parts of columns without what other parts hold.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, GenericListArray, GenericListViewArray, MapArray, OffsetSizeTrait, StructArray, UInt64Array,
    UnionArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, FieldRef, UnionMode};
use arrow_select::take::take;

/// A part of a column without what other parts hold. Of views, list views and dense unions, the writer would write all that the whole column
/// refers to.
pub(super) fn compact(part: &ArrayRef) -> ArrayRef {
    // A part that cannot be put together anew is written as it is.
    if shares(part.data_type()) { rebuilt(part).unwrap_or_else(|_| Arc::clone(part)) } else { Arc::clone(part) }
}

/// Whether parts of columns of this type share what the writer does not divide. The values of dictionaries are written once for all parts.
fn shares(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8View
        | DataType::BinaryView
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::Union(_, UnionMode::Dense) => true,
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) | DataType::Map(field, _) => {
            shares(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().any(|field| shares(field.data_type())),
        DataType::Union(fields, UnionMode::Sparse) => fields.iter().any(|(_, field)| shares(field.data_type())),
        _ => false,
    }
}

fn rebuilt(part: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let nulls = part.nulls().cloned();
    Ok(match part.data_type() {
        DataType::Utf8View => Arc::new(part.as_string_view().gc()),
        DataType::BinaryView => Arc::new(part.as_binary_view().gc()),
        DataType::Struct(fields) => {
            let columns = part.as_struct().columns().iter().map(compact).collect();
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, part.len())?)
        }
        DataType::List(field) => list::<i32>(part, field)?,
        DataType::LargeList(field) => list::<i64>(part, field)?,
        DataType::FixedSizeList(field, size) => {
            let values = compact(part.as_fixed_size_list().values());
            Arc::new(FixedSizeListArray::try_new_with_length(Arc::clone(field), *size, values, nulls, part.len())?)
        }
        DataType::Map(field, is_sorted) => {
            let map = part.as_map();
            let (offsets, first, count) = from_zero(map.offsets());
            let entries: ArrayRef = Arc::new(map.entries().slice(first, count));
            let entries = compact(&entries).as_struct().clone();
            Arc::new(MapArray::try_new(Arc::clone(field), offsets, entries, nulls, *is_sorted)?)
        }
        DataType::ListView(field) => list_view::<i32>(part, field)?,
        DataType::LargeListView(field) => list_view::<i64>(part, field)?,
        DataType::Union(_, mode) => {
            let rows = UInt64Array::from_iter_values(0..part.len() as u64);
            let part = if *mode == UnionMode::Dense { take(part, &rows, None)? } else { Arc::clone(part) };
            let (fields, types, offsets, children) = part.as_union().clone().into_parts();
            Arc::new(UnionArray::try_new(fields, types, offsets, children.iter().map(compact).collect())?)
        }
        _ => Arc::clone(part),
    })
}

/// Offsets that begin with 0, and the range of values that they are of: its beginning and its length.
fn from_zero<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>) -> (OffsetBuffer<O>, usize, usize) {
    let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
    let moved: ScalarBuffer<O> = offsets.iter().map(|&offset| offset - first).collect();
    (OffsetBuffer::new(moved), first.as_usize(), (last - first).as_usize())
}

fn list<O: OffsetSizeTrait>(part: &ArrayRef, field: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = part.as_list::<O>();
    let (offsets, first, count) = from_zero(list.offsets());
    let values = compact(&list.values().slice(first, count));
    Ok(Arc::new(GenericListArray::try_new(Arc::clone(field), offsets, values, list.nulls().cloned())?))
}

fn list_view<O: OffsetSizeTrait>(part: &ArrayRef, field: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = part.as_list_view::<O>();
    let range = |row: usize| {
        let start = list.offsets()[row].as_usize();
        if list.is_null(row) { start..start } else { start..start + list.sizes()[row].as_usize() }
    };
    // Rows may have the same values. Copied for each of them, they could be longer than before.
    let total = (0..list.len()).fold(0_usize, |total, row| total.saturating_add(range(row).len()));
    if total > list.values().len() {
        return Ok(Arc::clone(part));
    }
    let places: UInt64Array = (0..list.len()).flat_map(range).map(|place| Some(place as u64)).collect();
    let values = compact(&take(list.values(), &places, None)?);
    let mut next = 0;
    let (offsets, sizes): (Vec<O>, Vec<O>) = (0..list.len())
        .map(|row| {
            let size = range(row).len();
            next += size;
            (O::usize_as(next - size), O::usize_as(size))
        })
        .unzip();
    Ok(Arc::new(GenericListViewArray::try_new(Arc::clone(field), offsets.into(), sizes.into(), values, list.nulls().cloned())?))
}

#[cfg(test)]
mod tests {
    use arrow_array::builder::{ListViewBuilder, MapBuilder, StringBuilder, StringViewBuilder, UnionBuilder};
    use arrow_array::types::{Float64Type, Int64Type};
    use arrow_array::{Int64Array, ListArray, RecordBatch, StringViewArray};
    use arrow_ipc::writer::StreamWriter;
    use arrow_schema::{Field, Schema};

    use super::*;

    const ROWS: usize = 1000;

    fn written(column: &ArrayRef) -> usize {
        let schema = Arc::new(Schema::new(vec![Field::new("column", column.data_type().clone(), true)]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::clone(column)]).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap().len()
    }

    /// Columns of each type whose parts share values, of about 100 bytes in a row.
    fn columns() -> Vec<ArrayRef> {
        let texts = || (0..ROWS).map(|row| format!("{row:0100}"));
        let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts()));
        let field = Arc::new(Field::new("item", DataType::Utf8View, true));
        let list = ListArray::new(Arc::clone(&field), OffsetBuffer::from_lengths([1; ROWS]), Arc::clone(&views), None);
        let mut list_views = ListViewBuilder::new(StringViewBuilder::new());
        let mut numbers = ListViewBuilder::new(Int64Array::builder(0));
        let mut union = UnionBuilder::with_capacity_dense(ROWS);
        let mut map = MapBuilder::new(None, StringBuilder::new(), StringViewBuilder::new());
        for (row, text) in texts().enumerate() {
            map.keys().append_value("key");
            map.values().append_value(&text);
            map.append(true).unwrap();
            list_views.values().append_value(&text);
            list_views.append(row % 3 != 0);
            numbers.values().append_slice(&[row as i64; 12]);
            numbers.append(true);
            if row % 2 == 0 {
                union.append::<Int64Type>("a", row as i64).unwrap();
            } else {
                union.append::<Float64Type>("b", row as f64).unwrap();
            }
        }
        vec![
            Arc::clone(&views),
            Arc::new(StructArray::from(vec![(Arc::clone(&field), Arc::clone(&views))])),
            Arc::new(list),
            Arc::new(FixedSizeListArray::new(field, 1, views, None)),
            Arc::new(map.finish()),
            Arc::new(list_views.finish()),
            Arc::new(numbers.finish()),
            Arc::new(union.build().unwrap()),
        ]
    }

    #[test]
    fn parts_hold_what_is_theirs_alone() {
        for column in columns() {
            for (start, rows) in [(0, 10), (501, 10), (990, 10), (5, 0)] {
                let part = column.slice(start, rows);
                let compacted = compact(&part);
                let kind = part.data_type();
                assert_eq!(&compacted, &part, "{kind}");
                assert!(written(&compacted) < 4000, "{kind}: {}", written(&compacted));
                assert!(written(&part) > 8000 || rows == 0, "{kind}: {}", written(&part));
            }
        }
    }

    #[test]
    fn list_views_of_the_same_values_are_not_multiplied() {
        let field = Arc::new(Field::new("item", DataType::Int64, true));
        let values = Arc::new(Int64Array::from_iter_values(0..100));
        let list: ArrayRef = Arc::new(GenericListViewArray::<i32>::new(field, vec![0; 50].into(), vec![100; 50].into(), values, None));
        assert_eq!(written(&compact(&list)), written(&list));
    }
}
