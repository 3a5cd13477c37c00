//! Record batches with pictures, and what they are answered with.

use std::sync::Arc;

use arrow_array::{Array as _, ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use dino_vision::bulk::{self, BATCH, MAX_FILE, Worker};

use super::Error;
use super::compact::compact;
use crate::files::source::rows::image_column;
use crate::files::source::{self, Cells, NO_BYTES, memory};
use crate::files::vectors::{HEADER, Header, columns};

/// Column of what is wrong with a picture; null where it has a vector.
pub const ERROR: &str = "error";
/// Numbers of the vectors that are answered together, about.
const NUMBERS: usize = 4 << 20;
/// What the input is called in messages.
const SHOWN: &str = "the stream on stdin";

/// What becomes of a picture.
pub(super) type Outcome = Result<Vec<f32>, bulk::Error>;

/// The form of the answers to a stream.
pub(super) struct Answers {
    pub(super) schema: SchemaRef,
    header: Header,
    /// Place of the column of pictures.
    image: usize,
}

/// Rows that are answered together, which are at most those of a record batch.
pub(super) struct Unit {
    /// The columns that are passed on.
    columns: Vec<ArrayRef>,
    pictures: Cells,
    rows: usize,
    bytes: u64,
}

impl Answers {
    /// Those to a stream of this schema: its columns but the one of pictures, the vectors, and the errors.
    pub(super) fn of(schema: &Schema, image: Option<&str>, header: &Header) -> Result<Self, Error> {
        let name = image_column(SHOWN, schema, image).map_err(|error| match error {
            source::Error::Wrong(reason) => Error::Schema(format!("{SHOWN}: {reason}")),
            error => Error::Schema(error.to_string()),
        })?;
        let image = schema.index_of(name).map_err(|error| Error::Schema(error.to_string()))?;
        let mut fields: Vec<_> =
            schema.fields().iter().enumerate().filter(|(at, _)| *at != image).map(|(_, field)| field.clone()).collect();
        let mut own = columns::fields(header, true);
        own.push(Field::new(ERROR, DataType::Utf8, true));
        for field in own {
            if fields.iter().any(|other| other.name() == field.name()) {
                return Err(Error::Schema(format!("{SHOWN}: its column {0} would be in the answers twice: rename it", field.name())));
            }
            fields.push(Arc::new(field));
        }
        let mut metadata = schema.metadata().clone();
        metadata.insert(HEADER.to_owned(), serde_json::to_string(header).map_err(|error| Error::Schema(error.to_string()))?);
        Ok(Self { schema: Arc::new(Schema::new(fields).with_metadata(metadata)), header: header.clone(), image })
    }

    /// Rows that are answered together, at most.
    pub(super) fn rows(&self) -> usize {
        (NUMBERS / self.numbers().max(1)).clamp(1, BATCH)
    }

    /// Numbers of the vectors of a picture.
    fn numbers(&self) -> usize {
        self.header.rows * self.header.dim
    }

    /// The units of a record batch, one at least.
    pub(super) fn units(&self, batch: &RecordBatch) -> impl Iterator<Item = Result<Unit, ArrowError>> {
        let (all, most) = (batch.num_rows(), self.rows());
        let memory = memory::bytes(batch.columns());
        (0..all.max(1)).step_by(most).map(move |start| {
            let rows = most.min(all - start);
            let is_cut = rows < all;
            let cut = |column: &ArrayRef| if is_cut { compact(&column.slice(start, rows)) } else { Arc::clone(column) };
            let passed = batch.columns().iter().enumerate().filter(|(at, _)| *at != self.image).map(|(_, column)| cut(column)).collect();
            let pictures = Cells::of(&batch.column(self.image).slice(start, rows))?;
            let of_pictures = (0..rows).filter_map(|row| pictures.get(row)).map(|bytes| bytes.len() as u64).sum();
            let share = memory / all.max(1) as u64 * rows.max(1) as u64;
            Ok(Unit { columns: passed, pictures, rows, bytes: share.max(of_pictures) })
        })
    }

    /// What a unit is answered with.
    pub(super) fn answer(&self, unit: &Unit, outcomes: Vec<Outcome>) -> Result<RecordBatch, Error> {
        let numbers = self.numbers();
        let (mut vectors, mut errors) = (Vec::with_capacity(unit.rows * numbers), Vec::with_capacity(unit.rows));
        for outcome in outcomes {
            match outcome {
                Ok(vector) if vector.len() == numbers => {
                    vectors.extend(vector);
                    errors.push(None);
                }
                Ok(vector) => return Err(Error::Answer(format!("the model gave {} numbers, not {numbers}", vector.len()))),
                Err(error) if error.is_of_file() => {
                    vectors.resize(vectors.len() + numbers, 0.0);
                    errors.push(Some(error.to_string()));
                }
                Err(error) => return Err(Error::Model(error)),
            }
        }
        let nulls: NullBuffer = errors.iter().map(Option::is_none).collect();
        let mut columns = unit.columns.clone();
        columns.extend(columns::arrays(&self.header, unit.rows, vectors, Some(&nulls)).map_err(Error::Answer)?);
        columns.push(Arc::new(StringArray::from(errors)));
        let options = RecordBatchOptions::new().with_row_count(Some(unit.rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(|error| Error::Answer(error.to_string()))
    }
}

impl Unit {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Its share of the memory of the record batch, by rows, or the bytes of its pictures where they are more: rows of a dictionary may
    /// have the same one.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Embeds the picture of a row.
    pub(super) fn embed(&self, worker: &mut Worker<'_>, row: usize) -> Outcome {
        let bytes = self.pictures.get(row).ok_or_else(|| bulk::Error::NotThere(NO_BYTES.to_owned()))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(bulk::Error::TooLarge { size: bytes.len() as u64 });
        }
        worker.embed(bytes).map(|(_, vector)| vector)
    }
}
