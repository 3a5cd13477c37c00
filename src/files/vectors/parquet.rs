//! Embeddings as a Parquet file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use fs_err::File;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnPath;

use super::parts::{Parts, Row};
use super::{EMBEDDING, Error, HEADER, Header, LABEL, PATH, SHA256, Target, columns, parse_header};

/// Numbers in one row group, which is held in memory until it is complete.
const GROUP_NUMBERS: usize = 16 << 20;

pub(super) fn write(target: &Target, header: &Header, parts: &Parts) -> Result<(), Error> {
    let shown = target.shown();
    let fail = |error: ParquetError| match error {
        // What an operating system or a storage refused is said in its own words.
        ParquetError::External(error) => Error::format(&shown, error),
        error => Error::format(&shown, error),
    };
    let json = serde_json::to_string(header).map_err(|error| Error::format(&shown, error))?;
    let mut out = target.storage.create(&target.name)?;
    // Some readers look for it in the file's own metadata, and some in those of the Arrow schema inside.
    let schema = Arc::new(schema(header).with_metadata(HashMap::from([(HEADER.to_owned(), json.clone())])));
    let vectors = ColumnPath::from(vec![EMBEDDING.to_owned(), "list".to_owned(), "element".to_owned()]);
    let properties = WriterProperties::builder()
        .set_created_by(header.made_by.clone())
        .set_key_value_metadata(Some(vec![KeyValue::new(HEADER.to_owned(), json)]))
        .set_compression(Compression::SNAPPY)
        // Numbers of vectors neither repeat nor shrink.
        .set_column_dictionary_enabled(vectors.clone(), false)
        .set_column_compression(vectors, Compression::UNCOMPRESSED)
        .set_max_row_group_row_count(Some((GROUP_NUMBERS / (header.rows * header.dim).max(1)).max(1)))
        .build();
    let mut writer = ArrowWriter::try_new(&mut out, Arc::clone(&schema), Some(properties)).map_err(fail)?;
    for index in 0..parts.len() {
        let part = parts.load(index)?;
        let batch = batch(header, &schema, &part.rows, part.vectors).map_err(|reason| Error::format(&shown, reason))?;
        writer.write(&batch).map_err(fail)?;
    }
    writer.close().map_err(fail)?;
    Ok(out.finish()?)
}

fn schema(header: &Header) -> Schema {
    let mut fields =
        vec![Field::new(PATH, DataType::Utf8, false), Field::new(LABEL, DataType::Utf8, true), Field::new(SHA256, DataType::Utf8, false)];
    fields.extend(columns::fields(header, false));
    Schema::new(fields)
}

fn batch(header: &Header, schema: &Arc<Schema>, rows: &[Row], vectors: Vec<f32>) -> Result<RecordBatch, String> {
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.path))),
        Arc::new(rows.iter().map(|row| row.label.as_deref()).collect::<StringArray>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.sha256))),
    ];
    columns.extend(columns::arrays(header, rows.len(), vectors, None)?);
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| error.to_string())
}

/// The header in a Parquet file; `None` where it has none.
///
/// # Errors
/// [`Error::Format`] where it is no Parquet file, [`Error::Version`] where its header is of another version.
pub fn header_of(path: &Path) -> Result<Option<Header>, Error> {
    let shown = path.display().to_string();
    let reader = SerializedFileReader::new(File::open(path)?.into_parts().0).map_err(|error| Error::format(&shown, error))?;
    header_in(&shown, reader.metadata())
}

/// The header in a file of so many bytes, of which `tail` are the last.
pub(super) fn header_at_end(target: &Target, tail: Vec<u8>, size: u64) -> Result<Option<Header>, Error> {
    let shown = target.shown();
    let mut reader = ParquetMetaDataReader::new();
    let parsed = match reader.try_parse_sized(&Bytes::from(tail), size) {
        Err(ParquetError::NeedMoreData(needed)) => {
            let (tail, size) = target.storage.tail(&target.name, needed as u64)?.unwrap_or_default();
            reader.try_parse_sized(&Bytes::from(tail), size)
        }
        parsed => parsed,
    };
    let metadata = parsed.and_then(|()| reader.finish()).map_err(|error| Error::format(&shown, error))?;
    header_in(&shown, &metadata)
}

fn header_in(shown: &str, metadata: &ParquetMetaData) -> Result<Option<Header>, Error> {
    let entries = metadata.file_metadata().key_value_metadata();
    let json = entries.into_iter().flatten().find(|entry| entry.key == HEADER).and_then(|entry| entry.value.as_deref());
    json.map(|json| parse_header(shown, json)).transpose()
}
