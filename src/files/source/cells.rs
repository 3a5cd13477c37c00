//! Pictures in a column of Arrow: of one of its types of bytes, or of Hugging Face's struct of bytes and path.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, BinaryViewArray, LargeBinaryArray, downcast_integer_array};
use arrow_buffer::{ArrowNativeType as _, NullBuffer};
use arrow_schema::{ArrowError, DataType};

/// The bytes in a column. They are not copied: many rows of a dictionary may have the same picture.
#[derive(Clone, Debug)]
pub struct Cells(Bytes);

#[derive(Clone, Debug)]
enum Bytes {
    Binary(BinaryArray),
    LargeBinary(LargeBinaryArray),
    View(BinaryViewArray),
    /// Each row's place among the values.
    Dictionary {
        keys: ArrayRef,
        values: Box<Cells>,
    },
    Struct {
        nulls: Option<NullBuffer>,
        bytes: Box<Cells>,
    },
}

impl Cells {
    /// Whether columns of this type hold bytes.
    pub(super) fn are_in(kind: &DataType) -> bool {
        match kind {
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
            DataType::Dictionary(_, value) => Self::are_in(value),
            DataType::Struct(fields) => fields.iter().any(|field| field.name() == BYTES && Self::are_in(field.data_type())),
            _ => false,
        }
    }

    /// The bytes of a column.
    pub(in crate::files) fn of(column: &dyn Array) -> Result<Self, ArrowError> {
        let bytes = match column.data_type() {
            DataType::Binary => Bytes::Binary(column.as_binary::<i32>().clone()),
            DataType::LargeBinary => Bytes::LargeBinary(column.as_binary::<i64>().clone()),
            DataType::BinaryView => Bytes::View(column.as_binary_view().clone()),
            DataType::Dictionary(..) => {
                let dictionary = column.as_any_dictionary();
                let keys = dictionary.keys();
                // They stay as they are: of a dictionary inside another one, few may be asked for.
                Bytes::Dictionary { keys: keys.slice(0, keys.len()), values: Box::new(Self::of(dictionary.values())?) }
            }
            DataType::Struct(_) => {
                let inner = column.as_struct().column_by_name(BYTES);
                let inner = inner.ok_or_else(|| ArrowError::SchemaError(format!("no field `{BYTES}`")))?;
                Bytes::Struct { nulls: column.nulls().cloned(), bytes: Box::new(Self::of(inner)?) }
            }
            kind => return Err(ArrowError::SchemaError(format!("{kind} holds no bytes"))),
        };
        Ok(Self(bytes))
    }

    /// The bytes of a row; `None` where it is null, or not there.
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        fn valid<A: Array>(array: &A, row: usize) -> Option<&A> {
            (row < array.len() && array.is_valid(row)).then_some(array)
        }
        let is_null = |nulls: &Option<NullBuffer>| nulls.as_ref().is_some_and(|nulls| row >= nulls.len() || nulls.is_null(row));
        match &self.0 {
            Bytes::Binary(array) => valid(array, row).map(|array| array.value(row)),
            Bytes::LargeBinary(array) => valid(array, row).map(|array| array.value(row)),
            Bytes::View(array) => valid(array, row).map(|array| array.value(row)),
            Bytes::Dictionary { keys, values } => values.get(key(valid(keys, row)?, row)?),
            Bytes::Struct { nulls, .. } if is_null(nulls) => None,
            Bytes::Struct { bytes, .. } => bytes.get(row),
        }
    }
}

/// The place that a row of keys names.
fn key(keys: &dyn Array, row: usize) -> Option<usize> {
    downcast_integer_array!(
        keys => keys.value(row).to_usize(),
        _ => None,
    )
}

/// The field of a struct that holds a picture.
const BYTES: &str = "bytes";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::types::Int8Type;
    use arrow_array::{ArrayRef, DictionaryArray, Int8Array, StructArray};
    use arrow_schema::Field;

    use super::*;

    #[test]
    fn every_type_of_bytes_gives_the_same_cells() {
        let values = [Some(&b"first"[..]), None, Some(&b"a third one that is longer than a view holds"[..])];
        let dictionary = |keys: Vec<Option<i8>>, values: BinaryArray| -> ArrayRef {
            Arc::new(DictionaryArray::<Int8Type>::new(Int8Array::from(keys), Arc::new(values)))
        };
        let binary: ArrayRef = Arc::new(BinaryArray::from_iter(values));
        let field = Arc::new(Field::new(BYTES, DataType::Binary, true));
        let columns: [ArrayRef; 7] = [
            Arc::clone(&binary),
            Arc::new(LargeBinaryArray::from_iter(values)),
            Arc::new(BinaryViewArray::from_iter(values)),
            // A key that is null, and one of a value that is null.
            dictionary(vec![Some(1), None, Some(0)], BinaryArray::from_iter([values[2], values[0]])),
            dictionary(vec![Some(0), Some(1), Some(2)], BinaryArray::from_iter(values)),
            Arc::new(StructArray::new(vec![Arc::clone(&field)].into(), vec![Arc::clone(&binary)], None)),
            Arc::new(StructArray::new(vec![field].into(), vec![binary], Some(vec![true, false, true].into()))),
        ];
        for column in columns {
            assert!(Cells::are_in(column.data_type()));
            let cells = Cells::of(&column).unwrap();
            assert_eq!([0, 1, 2].map(|row| cells.get(row)), values, "{}", column.data_type());
            assert_eq!(cells.get(3), None);
            let behind = Cells::of(&column.slice(2, 1)).unwrap();
            assert_eq!([behind.get(0), behind.get(1)], [values[2], None], "{}", column.data_type());
        }
        let empty = Cells::of(&dictionary(vec![None, None], BinaryArray::from_iter([None::<&[u8]>; 0]))).unwrap();
        assert_eq!(empty.get(1), None);
        // A dictionary whose values are a dictionary.
        let nested = DictionaryArray::<Int8Type>::new(
            Int8Array::from(vec![Some(2), None, Some(1), Some(0)]),
            dictionary(vec![Some(1), None, Some(0)], BinaryArray::from_iter([values[2], values[0]])),
        );
        let cells = Cells::of(&nested.slice(1, 3)).unwrap();
        assert_eq!([0, 1, 2, 3].map(|row| cells.get(row)), [None, None, values[0], None]);
        assert_eq!(Cells::of(&nested).unwrap().get(0), values[2]);
        assert!(!Cells::are_in(&DataType::Utf8) && Cells::of(&Int8Array::from(vec![1])).is_err());
    }
}
