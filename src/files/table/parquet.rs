//! Tables as Parquet: pictures, or the vectors that `embed` wrote.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use fs_err::File;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::file::metadata::ParquetMetaData;

use super::ids::Ids;
use super::{Columns, Error, Pictures, Places, Role, Table, check, json};
use crate::files::vectors::{self, EMBEDDING, Header, SHA256};
use crate::index::{Item, MAX_STRING};
use dino_vision::unicode::nfc;

/// Rows that are read at once.
const ROWS: usize = 1024;

/// An item with its vector `[dim]`.
pub type VectorRow = (Item, Vec<f32>);

/// The vectors of a table, a few at a time.
pub struct Vectors {
    /// What they are.
    pub header: Header,
    /// Number of rows.
    pub count: usize,
    /// Columns that are left out, with the reason.
    pub ignored: Vec<String>,
    rows: Rows,
    /// Composed forms of paths that several rows have in different forms.
    alike: HashSet<String>,
}

impl Places {
    fn all(&self) -> impl Iterator<Item = usize> {
        [Some(self.path), self.id, self.label].into_iter().flatten()
    }
}

struct Rows {
    path: PathBuf,
    columns: Columns,
    places: Places,
    batches: ParquetRecordBatchReader,
    /// Whether `embed` wrote them.
    of_embed: bool,
    /// Number of the last row that was read.
    row: usize,
}

pub(super) fn open(path: &Path, columns: &Columns, embed: bool) -> Result<Table, Error> {
    let malformed = |error: parquet::errors::ParquetError| Error::Format { path: path.to_owned(), reason: error.to_string() };
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?.into_parts().0).map_err(malformed)?;
    let schema = builder.schema().clone();
    let with_vectors = !embed && schema.column_with_name(EMBEDDING).is_some();
    let header = if with_vectors { vectors::header_of(path)? } else { None };
    if with_vectors && header.is_none() {
        return Err(Error::UnknownVectors(path.to_owned()));
    }
    let columns_by_role = (0..schema.fields().len()).filter(|&column| !is_of_vectors(schema.field(column).name())).collect::<Vec<_>>();
    let names: Vec<&str> = columns_by_role.iter().map(|&column| schema.field(column).name().as_str()).collect();
    let fits = |place: usize, role| {
        let column = columns_by_role[place];
        codec(builder.metadata(), column).map_or(Ok(()), |codec| Err(format!("is compressed with {codec}, which is not read here")))?;
        let kind = schema.field(column).data_type();
        let (fits, wanted) = match role {
            Role::Text => (json::is_text(kind), "text"),
            Role::Labels => (json::is_text(json::element(kind).unwrap_or(kind)), "text or lists of it"),
        };
        if fits { Ok(()) } else { Err(format!("is of type {kind}, and has to be {wanted}")) }
    };
    let places = columns.places(path, &names, fits)?;
    let ids = Ids { file: path, path: columns_by_role[places.path], id: places.id.map(|place| columns_by_role[place]) };
    let has_role = |column: usize| places.all().any(|place| columns_by_role[place] == column);
    // Of vectors only those that are wanted are read; what has no form in JSON is not read at all.
    let (mut read, mut ignored) = (Vec::new(), Vec::new());
    for (column, field) in schema.fields().iter().enumerate() {
        let (is_embedding, codec) = (field.name() == EMBEDDING && with_vectors, codec(builder.metadata(), column));
        match codec {
            Some(codec) if is_embedding => {
                let reason = format!("is compressed with {codec}, which is not read here");
                return Err(Error::Unfit { path: path.to_owned(), column: EMBEDDING.to_owned(), reason });
            }
            _ if !is_embedding && is_of_vectors(field.name()) => {}
            Some(codec) => ignored.push(format!("{} (compressed with {codec}, which is not read here)", field.name())),
            None if is_embedding || has_role(column) || json::possible(field.data_type()) => read.push(column),
            None => ignored.push(format!("{} ({})", field.name(), field.data_type())),
        }
    }
    let in_batch = |place: usize| read.iter().position(|&column| column == columns_by_role[place]).unwrap_or_default();
    let places = Places { path: in_batch(places.path), id: places.id.map(in_batch), label: places.label.map(in_batch) };
    let mask = ProjectionMask::roots(builder.parquet_schema(), read.iter().copied());
    let count = builder.metadata().file_metadata().num_rows() as usize;
    let batches = builder.with_batch_size(ROWS).with_projection(mask).build().map_err(malformed)?;
    let rows = Rows { path: path.to_owned(), columns: columns.clone(), places, batches, of_embed: with_vectors, row: 0 };
    match header {
        Some(header) => Ok(Table::Vectors(Box::new(Vectors { header, count, ignored, rows, alike: ids.alike()? }))),
        None => rows.pictures(ignored).map(Table::Pictures),
    }
}

/// The name of a compression that is not read here and that some part of a column has.
fn codec(metadata: &ParquetMetaData, column: usize) -> Option<&'static str> {
    let schema = metadata.file_metadata().schema_descr();
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns().iter().enumerate());
    let of_column = chunks.filter(|(leaf, _)| schema.get_column_root_idx(*leaf) == column);
    of_column.map(|(_, chunk)| chunk.compression()).find_map(|codec| match codec {
        Compression::LZO => Some("LZO"),
        _ => None,
    })
}

/// Columns that `embed` writes and that are no metadata.
fn is_of_vectors(column: &str) -> bool {
    column == EMBEDDING || column == "scales"
}

impl Rows {
    fn pictures(mut self, ignored: Vec<String>) -> Result<Pictures, Error> {
        let mut pictures = Pictures { ignored, ..Pictures::default() };
        while let Some(batch) = self.next_batch()? {
            for (path, item) in self.items(&batch).map_err(|error| self.malformed(&error))? {
                self.row += 1;
                pictures.add(self.row, &path, item);
            }
        }
        pictures.distinct(&self.path)
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>, Error> {
        self.batches.next().transpose().map_err(|error| self.malformed(&error))
    }

    /// Path and item of each row; an absent path is empty.
    fn items(&self, batch: &RecordBatch) -> Result<Vec<(String, Item)>, ArrowError> {
        let Places { path, id, label } = self.places;
        let mut items: Vec<(String, Item)> =
            json::texts(batch.column(path))?.into_iter().map(|path| (path.unwrap_or_default(), Item::default())).collect();
        if let Some(id) = id {
            for ((_, item), id) in items.iter_mut().zip(json::texts(batch.column(id))?) {
                item.id = id.unwrap_or_default();
            }
        }
        if let Some(label) = label {
            for ((_, item), labels) in items.iter_mut().zip(self.labels(batch.column(label))?) {
                item.labels = labels;
            }
        }
        let schema = batch.schema();
        for (column, field) in metadata(&schema, &self.places) {
            let values = json::values(batch.column(column))?;
            for ((_, item), value) in items.iter_mut().zip(values) {
                match value {
                    // As `import` notes it, so that it knows a picture again that it has not seen.
                    Some(serde_json::Value::String(hash)) if self.of_embed && field.name() == SHA256 => item.source = Some(hash),
                    Some(value) => drop(item.metadata.insert(field.name().clone(), value)),
                    None => {}
                }
            }
        }
        Ok(items)
    }

    /// Labels of each row: a list of strings, or one string.
    fn labels(&self, column: &ArrayRef) -> Result<Vec<Vec<String>>, ArrowError> {
        match json::lists_of_texts(column)? {
            Some(lists) => Ok(lists),
            None => Ok(json::texts(column)?.into_iter().map(|cell| self.columns.split(&cell.unwrap_or_default())).collect()),
        }
    }

    fn malformed(&self, error: &ArrowError) -> Error {
        Error::Format { path: self.path.clone(), reason: error.to_string() }
    }
}

/// The columns that become metadata.
fn metadata<'a>(schema: &'a Schema, places: &Places) -> impl Iterator<Item = (usize, &'a Field)> {
    let taken: Vec<usize> = places.all().collect();
    let fields = schema.fields().iter().map(AsRef::as_ref).enumerate();
    fields.filter(move |(column, field)| !taken.contains(column) && !is_of_vectors(field.name()))
}

/// Rows that can be stored, and the numbers of those that cannot, with the reason.
pub type VectorBatch = (Vec<VectorRow>, Vec<(usize, String)>);

impl Vectors {
    /// The next rows; `None` after the last.
    ///
    /// # Errors
    /// [`Error::Format`].
    pub fn next_batch(&mut self) -> Result<Option<VectorBatch>, Error> {
        let Some(batch) = self.rows.next_batch()? else { return Ok(None) };
        let items = self.rows.items(&batch).map_err(|error| self.rows.malformed(&error))?;
        let vectors = vectors_of(&batch).map_err(|error| self.rows.malformed(&error))?;
        let (mut rows, mut skipped) = (Vec::with_capacity(items.len()), Vec::new());
        for ((path, item), vector) in items.into_iter().zip(vectors) {
            self.rows.row += 1;
            let checked = self.identify(&path, item).and_then(|item| Ok((item, check_vector(vector, self.header.dim)?)));
            match checked {
                Ok(row) => rows.push(row),
                Err(reason) => skipped.push((self.rows.row, reason)),
            }
        }
        Ok(Some((rows, skipped)))
    }
}

impl Vectors {
    /// An item that can be stored. Where its path is its id, that is composed, unless another row's id looks the same.
    fn identify(&self, path: &str, item: Item) -> Result<Item, String> {
        let named_by_path = item.id.is_empty();
        let mut item = check(path, item)?;
        let composed = nfc(path);
        if named_by_path && composed.len() <= MAX_STRING && !self.alike.contains(&*composed) {
            item.id = composed.into_owned();
        }
        Ok(item)
    }
}

/// The lists of the vectors' column.
fn vectors_of(batch: &RecordBatch) -> Result<Vec<Option<Vec<f32>>>, ArrowError> {
    let column = batch.column_by_name(EMBEDDING).ok_or_else(|| ArrowError::SchemaError(format!("no column {EMBEDDING}")))?;
    let lists = cast(column, &DataType::new_list(DataType::Float32, true))?;
    let numbers = |list: ArrayRef| (list.null_count() == 0).then(|| list.as_primitive::<Float32Type>().values().to_vec());
    Ok(lists.as_list::<i32>().iter().map(|list| list.and_then(numbers)).collect())
}

fn check_vector(vector: Option<Vec<f32>>, dim: usize) -> Result<Vec<f32>, String> {
    let vector = vector.ok_or("it has no vector")?;
    if vector.len() != dim {
        Err(format!("its vector has {} numbers, not {dim}", vector.len()))
    } else if vector.iter().any(|number| !number.is_finite()) {
        Err("its vector has numbers that are not finite".to_owned())
    } else if vector.iter().all(|&number| number == 0.0) {
        Err("its vector is all zeros".to_owned())
    } else {
        Ok(vector)
    }
}
