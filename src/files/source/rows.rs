//! Pictures in a column of Parquet and Arrow files.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, Schema};
use dino_vision::bulk::BATCH;
use fs_err::File;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::ipc;
use super::packed::Local;
use super::{Batch, Batches, Cells, Columns, Error, Failure, NO_BYTES, Picture, Place};
use crate::files::table::json;

/// Bytes of pictures that are read from Parquet at once, about.
const BYTES: u64 = 64 << 20;
type Reader = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

/// The pictures of a file, whose ids begin with `name` where no column has any.
pub(super) fn batches(file: &Arc<Local>, name: &str, is_parquet: bool, columns: &Columns) -> Result<Batches<'static>, Error> {
    let open = if is_parquet { parquet } else { arrow };
    let (plan, reader) = open(file, columns)?;
    Ok(Box::new(Rows { reader, plan, file: Arc::clone(file), name: name.to_owned(), row: 0, rest: None }))
}

/// Which columns have which meaning.
struct Plan {
    image: String,
    id: Option<String>,
    label: Option<String>,
    /// Names of classes that the column of labels counts, as Hugging Face's library writes them.
    classes: Vec<String>,
}

impl Plan {
    /// Finds the columns. One that a flag names has to be there: what is wrong with it is wrong in every file.
    fn of(shown: &str, schema: &Schema, columns: &Columns) -> Result<Self, Error> {
        let image = image_column(shown, schema, columns.image.as_deref())?.to_owned();
        let label = find(shown, schema, columns.label.as_deref(), &["label", "labels"], "--label-column")?;
        let classes = label.as_ref().map(|label| classes(schema, label)).unwrap_or_default();
        Ok(Self { image, id: find(shown, schema, columns.id.as_deref(), &["id"], "--id-column")?, label, classes })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        [Some(&self.image), self.id.as_ref(), self.label.as_ref()].into_iter().flatten().map(String::as_str)
    }
}

/// The column of pictures: the one that a flag names, `image`, or the only one of bytes.
pub(in crate::files) fn image_column<'a>(shown: &str, schema: &'a Schema, wanted: Option<&str>) -> Result<&'a str, Error> {
    let named = find(shown, schema, wanted, &[], "--image-column")?;
    let of_bytes = || schema.fields().iter().filter(|field| Cells::are_in(field.data_type()));
    let field = match named {
        Some(name) => schema.field_with_name(&name).ok(),
        None => {
            of_bytes().find(|field| field.name() == "image").or(of_bytes().next().filter(|_| of_bytes().count() == 1)).map(AsRef::as_ref)
        }
    };
    let reason = || Error::Wrong(format!("no column is known to hold pictures: name one with --image-column; it has {}", names(schema)));
    let field = field.ok_or_else(reason)?;
    let (name, kind) = (field.name(), field.data_type());
    if !Cells::are_in(kind) {
        let reason = format!("its column {name} is of type {kind}, and has to be of bytes, or a struct with a field `bytes`");
        return Err(Error::Column { shown: shown.to_owned(), reason });
    }
    // Columns are found by their name, which would be that of the first one.
    if schema.fields().iter().filter(|other| other.name() == name).count() > 1 {
        return Err(Error::Wrong(format!("it has more than one column {name}: rename all but the one of pictures")));
    }
    Ok(name)
}

/// The column that a flag names, else the first of the usual ones that is there.
fn find(shown: &str, schema: &Schema, wanted: Option<&str>, usual: &[&str], flag: &str) -> Result<Option<String>, Error> {
    let is_there = |name: &&str| schema.column_with_name(name).is_some();
    match wanted {
        Some(wanted) if !is_there(&wanted) => {
            let reason = format!("it has no column {wanted} ({flag}); it has {}", names(schema));
            Err(Error::Column { shown: shown.to_owned(), reason })
        }
        Some(wanted) => Ok(Some(wanted.to_owned())),
        None => Ok(usual.iter().copied().find(is_there).map(str::to_owned)),
    }
}

fn names(schema: &Schema) -> String {
    schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// Names of the classes that a column counts.
fn classes(schema: &Schema, column: &str) -> Vec<String> {
    let note = schema.metadata().get("huggingface").and_then(|note| serde_json::from_str::<serde_json::Value>(note).ok());
    let names = note.as_ref().and_then(|note| note.get("info")?.get("features")?.get(column)?.get("names")?.as_array());
    names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::Wrong(error.to_string())
}

fn parquet(file: &Local, columns: &Columns) -> Result<(Plan, Reader), Error> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&file.path)?.into_parts().0).map_err(wrong)?;
    let plan = Plan::of(&file.shown, builder.schema(), columns)?;
    let schema = builder.parquet_schema();
    let wanted = |root: &usize| plan.names().any(|name| name == schema.root_schema().get_fields()[*root].name());
    let mask = ProjectionMask::roots(schema, (0..schema.root_schema().get_fields().len()).filter(wanted));
    // So many rows that their pictures fit into memory, also where they are large.
    let rows = builder.metadata().row_groups().iter().map(|group| {
        let of_image = |leaf: &usize| {
            let root = schema.get_column_root_idx(*leaf);
            schema.root_schema().get_fields()[root].name() == plan.image
        };
        let bytes: i64 = (0..schema.num_columns()).filter(of_image).map(|leaf| group.column(leaf).uncompressed_size()).sum();
        let one = (bytes.max(1) as u64).div_ceil(group.num_rows().max(1) as u64).max(1);
        BYTES / one
    });
    let rows = rows.min().unwrap_or(1).clamp(1, BATCH as u64) as usize;
    let reader = builder.with_batch_size(rows).with_projection(mask).build().map_err(wrong)?;
    Ok((plan, Box::new(reader)))
}

fn arrow(file: &Local, columns: &Columns) -> Result<(Plan, Reader), Error> {
    let mut stream = ipc::open(&file.path).map_err(wrong)?;
    let schema = stream.schema().map_err(wrong)?;
    let plan = Plan::of(&file.shown, &schema, columns)?;
    Ok((plan, Box::new(stream)))
}

/// The pictures of a reader.
struct Rows {
    reader: Reader,
    plan: Plan,
    file: Arc<Local>,
    name: String,
    /// Rows that were given.
    row: usize,
    /// What is left of the last record batch.
    rest: Option<RecordBatch>,
}

impl Iterator for Rows {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let batch = match self.rest.take().map(Ok).or_else(|| self.reader.next())? {
            Ok(batch) => batch,
            Err(error) => return Some(self.damaged(&error)),
        };
        let now = batch.num_rows().min(BATCH);
        if batch.num_rows() > now {
            self.rest = Some(batch.slice(now, batch.num_rows() - now));
        }
        match self.pictures(&batch.slice(0, now)) {
            Ok(batch) => Some(batch),
            Err(error) => Some(self.damaged(&error)),
        }
    }
}

impl Rows {
    fn damaged(&mut self, error: &ArrowError) -> Batch {
        // What follows in a damaged file is damaged too.
        self.reader = Box::new(std::iter::empty());
        self.rest = None;
        let reason = format!("it is damaged behind row {} ({error}): the rest of it is left out", self.row);
        Batch { pictures: Vec::new(), failures: vec![Failure { id: self.name.clone(), path: self.file.shown.clone(), reason }] }
    }

    fn pictures(&mut self, rows: &RecordBatch) -> Result<Batch, ArrowError> {
        let column = |name: &str| rows.column_by_name(name).ok_or_else(|| ArrowError::SchemaError(format!("no column {name}")));
        let cells = Arc::new(Cells::of(column(&self.plan.image)?)?);
        let ids = self.plan.id.as_ref().map(|id| json::texts(column(id)?)).transpose()?;
        let labels = self.plan.label.as_ref().map(|label| labels_of(column(label)?, &self.plan.classes)).transpose()?;
        let mut batch = Batch::default();
        for row in 0..rows.num_rows() {
            let shown = format!("{}, row {}", self.file.shown, self.row);
            let by_row = format!("{}/{}", self.name, self.row);
            self.row += 1;
            let id = ids.as_ref().map_or(Some(&by_row), |ids| ids[row].as_ref().filter(|id| !id.is_empty()));
            let reason = match id {
                None => "it has no id",
                Some(_) if cells.get(row).is_none() => NO_BYTES,
                Some(id) => {
                    let labels = labels.as_ref().map(|labels| labels[row].clone()).unwrap_or_default();
                    batch.pictures.push(Picture { id: id.clone(), labels, place: Place::Cell { cells: Arc::clone(&cells), row, shown } });
                    continue;
                }
            };
            batch.failures.push(Failure { id: id.unwrap_or(&by_row).clone(), path: shown, reason: reason.to_owned() });
        }
        Ok(batch)
    }
}

/// Labels of each row; numbers of classes become their names.
fn labels_of(column: &ArrayRef, classes: &[String]) -> Result<Vec<Vec<String>>, ArrowError> {
    let lists = match json::lists_of_texts(column)? {
        Some(lists) => lists,
        None => json::texts(column)?.into_iter().map(|text| text.into_iter().filter(|text| !text.is_empty()).collect()).collect(),
    };
    let named = |label: String| label.parse::<usize>().ok().and_then(|number| classes.get(number).cloned()).unwrap_or(label);
    Ok(lists.into_iter().map(|labels: Vec<String>| labels.into_iter().map(named).collect()).collect())
}
