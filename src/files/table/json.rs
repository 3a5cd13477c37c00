//! Cells of Arrow columns as JSON, for metadata.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, make_array};
use arrow_cast::{can_cast_types, cast};
use arrow_schema::{ArrowError, DataType};
use serde_json::{Number, Value};

/// Whether cells of this type have a form in JSON.
pub(super) fn possible(kind: &DataType) -> bool {
    match kind {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => possible(field.data_type()),
        DataType::Dictionary(_, value) => possible(value),
        DataType::Struct(fields) => fields.iter().all(|field| possible(field.data_type())),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::Union(..)
        | DataType::Map(..)
        | DataType::RunEndEncoded(..) => false,
        kind => can_cast_types(kind, &DataType::Utf8),
    }
}

/// Whether cells of this type are strings, or have a form as a string. Older writers mark strings as bytes.
pub(super) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, value) => is_text(value),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        kind => !kind.is_nested() && possible(kind),
    }
}

/// One value a row; `None` for what is absent or, in JSON, no number. Dates, times (in UTC where they have a zone) and decimals
/// become text.
pub(super) fn values(column: &ArrayRef) -> Result<Vec<Option<Value>>, ArrowError> {
    let kind = column.data_type();
    Ok(match kind {
        DataType::Null => vec![None; column.len()],
        DataType::Boolean => column.as_boolean().iter().map(|cell| cell.map(Value::Bool)).collect(),
        DataType::Float16 | DataType::Float32 => {
            // The shortest text that means the same: 0.1 stays 0.1 among numbers of 64 bits.
            let shortest = |cell: &str| cell.parse().ok().and_then(Number::from_f64).map(Value::Number);
            texts(column)?.into_iter().map(|cell| cell.and_then(|cell| shortest(&cell))).collect()
        }
        DataType::Float64 => {
            column.as_primitive::<Float64Type>().iter().map(|cell| cell.and_then(Number::from_f64).map(Value::Number)).collect()
        }
        kind if kind.is_signed_integer() => {
            cast(column, &DataType::Int64)?.as_primitive::<Int64Type>().iter().map(|cell| cell.map(Value::from)).collect()
        }
        kind if kind.is_unsigned_integer() => {
            cast(column, &DataType::UInt64)?.as_primitive::<UInt64Type>().iter().map(|cell| cell.map(Value::from)).collect()
        }
        DataType::Dictionary(_, value) => values(&cast(column, value)?)?,
        DataType::FixedSizeList(field, _) | DataType::LargeList(field) => values(&cast(column, &DataType::List(field.clone()))?)?,
        DataType::List(_) => {
            let list = |cell: ArrayRef| Ok(Value::Array(values(&cell)?.into_iter().map(Option::unwrap_or_default).collect()));
            column.as_list::<i32>().iter().map(|cell| cell.map(list).transpose()).collect::<Result<_, ArrowError>>()?
        }
        DataType::Struct(fields) => {
            let parts = column.as_struct();
            let mut objects = vec![serde_json::Map::new(); column.len()];
            for (field, part) in fields.iter().zip(parts.columns()) {
                for (object, value) in objects.iter_mut().zip(values(part)?) {
                    object.extend(value.map(|value| (field.name().clone(), value)));
                }
            }
            let object = |(row, object)| column.is_valid(row).then_some(Value::Object(object));
            objects.into_iter().enumerate().map(object).collect()
        }
        _ => texts(column)?.into_iter().map(|cell| cell.map(Value::String)).collect(),
    })
}

/// The cells as text; `None` for those that are absent, and for bytes that are not UTF-8.
pub(in crate::files) fn texts(column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let texts = match column.data_type() {
        DataType::Dictionary(_, value) => return texts(&cast(column, value)?),
        // The number is that of UTC whatever the zone, whose name only a table of all zones could resolve.
        DataType::Timestamp(unit, Some(_)) => {
            let utc = DataType::Timestamp(*unit, Some("+00:00".into()));
            cast(&make_array(column.to_data().into_builder().data_type(utc).build()?), &DataType::Utf8)?
        }
        _ => cast(column, &DataType::Utf8)?,
    };
    Ok(texts.as_string::<i32>().iter().map(|cell| cell.map(str::to_owned)).collect())
}

/// The texts in the lists of a column; `None` where it is no column of lists.
pub(in crate::files) fn lists_of_texts(column: &ArrayRef) -> Result<Option<Vec<Vec<String>>>, ArrowError> {
    let Some(element) = element(column.data_type()) else { return Ok(None) };
    let lists = cast(column, &DataType::new_list(element.clone(), true))?;
    let texts = |cell: Option<ArrayRef>| cell.map_or(Ok(Vec::new()), |cell| texts(&cell));
    let lists = lists.as_list::<i32>().iter().map(texts).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(lists.into_iter().map(|texts| texts.into_iter().flatten().filter(|text| !text.is_empty()).collect()).collect()))
}

/// Type of the elements of a list.
pub(super) fn element(kind: &DataType) -> Option<&DataType> {
    match kind {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => Some(field.data_type()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::{Int32Builder, ListBuilder, StringDictionaryBuilder};
    use arrow_array::types::Int8Type;
    use arrow_array::{
        BooleanArray, Date32Array, Decimal128Array, FixedSizeListArray, Float32Array, Float64Array, LargeStringArray, StringViewArray,
        StructArray, TimestampMillisecondArray, UInt8Array, UInt64Array,
    };
    use arrow_schema::Field;
    use serde_json::json;

    use super::*;

    fn of(column: impl Array + 'static) -> Value {
        let column: ArrayRef = Arc::new(column);
        assert!(possible(column.data_type()));
        values(&column).unwrap().into_iter().map(Option::unwrap_or_default).collect()
    }

    #[test]
    fn every_kind_of_cell_has_its_form() {
        assert_eq!(of(UInt8Array::from(vec![Some(255), None])), json!([255, null]));
        assert_eq!(of(Float32Array::from(vec![0.1, f32::NAN])), json!([0.1, null]));
        assert_eq!(of(Float64Array::from(vec![-2.5, f64::INFINITY])), json!([-2.5, null]));
        assert_eq!(of(BooleanArray::from(vec![true, false])), json!([true, false]));
        assert_eq!(of(UInt64Array::from(vec![u64::MAX])), json!([u64::MAX]));
        assert_eq!(of(LargeStringArray::from(vec!["a"])), json!(["a"]));
        assert_eq!(of(StringViewArray::from(vec!["a longer text than twelve bytes"])), json!(["a longer text than twelve bytes"]));
        assert_eq!(of(Decimal128Array::from(vec![150]).with_precision_and_scale(5, 2).unwrap()), json!(["1.50"]));
        for zone in ["UTC", "Europe/Berlin", "+02:00", "nowhere"] {
            let times = TimestampMillisecondArray::from(vec![Some(1_704_067_200_500), None]).with_timezone(zone);
            assert_eq!(of(times.clone()), json!(["2024-01-01T00:00:00.500Z", null]), "{zone}");
            let field = Arc::new(Field::new("item", times.data_type().clone(), true));
            let lists = FixedSizeListArray::new(field, 2, Arc::new(times), None);
            assert_eq!(of(lists), json!([["2024-01-01T00:00:00.500Z", null]]), "{zone}");
        }
        assert_eq!(of(Date32Array::from(vec![0, 20_000])), json!(["1970-01-01", "2024-10-04"]));
        let mut words = StringDictionaryBuilder::<Int8Type>::new();
        words.append_value("züg");
        words.append_null();
        words.append_value("züg");
        assert_eq!(of(words.finish()), json!(["züg", null, "züg"]));
        let mut lists = ListBuilder::new(Int32Builder::new());
        lists.append_value([Some(1), None]);
        lists.append_null();
        assert_eq!(of(lists.finish()), json!([[1, null], null]));
        let number: (Arc<Field>, ArrayRef) =
            (Arc::new(Field::new("n", DataType::UInt8, true)), Arc::new(UInt8Array::from(vec![Some(1), None])));
        assert_eq!(of(StructArray::from(vec![number])), json!([{"n": 1}, {}]));
    }
}
