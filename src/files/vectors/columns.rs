//! Embeddings as columns of Arrow.

use std::sync::Arc;

use arrow_array::types::{Float16Type, Float32Type, Int8Type, UInt8Type};
use arrow_array::{ArrayRef, ArrowPrimitiveType, FixedSizeListArray, PrimitiveArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field};

use super::{EMBEDDING, Header, encoded};
use crate::encoding::{Dtype, Encoded, Values};

/// Column of int8: what each row of numbers is to be multiplied with.
const SCALES: &str = "scales";

/// The columns: the vectors and, of int8, their scales. They are nullable where a row may have none.
pub(in crate::files) fn fields(header: &Header, is_nullable: bool) -> Vec<Field> {
    let number = match header.dtype {
        Dtype::F32 => DataType::Float32,
        Dtype::F16 => DataType::Float16,
        Dtype::Int8 => DataType::Int8,
        Dtype::Binary => DataType::UInt8,
    };
    let list = |number, length| DataType::FixedSizeList(element(number), length);
    let mut fields = vec![Field::new(EMBEDDING, list(number, list_length(header)), is_nullable)];
    if header.dtype == Dtype::Int8 {
        fields.push(Field::new(SCALES, list(DataType::Float32, header.rows as i32), is_nullable));
    }
    fields
}

/// The columns of so many pictures. `vectors` has numbers for each of them, also for those that `nulls` says have no vector.
pub(in crate::files) fn arrays(
    header: &Header,
    pictures: usize,
    vectors: Vec<f32>,
    nulls: Option<&NullBuffer>,
) -> Result<Vec<ArrayRef>, String> {
    let Encoded { values, scales, .. } = encoded(header, pictures, vectors)?;
    let length = list_length(header);
    let mut columns = vec![match values {
        Values::F32(values) => lists::<Float32Type>(values, length, nulls),
        Values::F16(values) => lists::<Float16Type>(values, length, nulls),
        Values::Int8(values) => lists::<Int8Type>(values, length, nulls),
        Values::Binary(values) => lists::<UInt8Type>(values, length, nulls),
    }?];
    if header.dtype == Dtype::Int8 {
        columns.push(lists::<Float32Type>(scales, header.rows as i32, nulls)?);
    }
    Ok(columns)
}

/// Length of a list in the column of the vectors.
fn list_length(header: &Header) -> i32 {
    (header.rows * header.dtype.stored(header.dim)) as i32
}

fn element(number: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", number, false))
}

fn lists<T: ArrowPrimitiveType>(values: Vec<T::Native>, length: i32, nulls: Option<&NullBuffer>) -> Result<ArrayRef, String> {
    let values = Arc::new(PrimitiveArray::<T>::from_iter_values(values));
    let lists = FixedSizeListArray::try_new(element(T::DATA_TYPE), length, values, nulls.cloned()).map_err(|error| error.to_string())?;
    Ok(Arc::new(lists))
}
