//! Tables as CSV, with a header line.

use std::io::{BufReader, Read};
use std::path::Path;

use csv::ReaderBuilder;
use flate2::bufread::MultiGzDecoder;
use fs_err::File;
use serde_json::{Number, Value};

use super::{Columns, Error, Pictures};
use crate::index::Item;

pub(super) fn read(path: &Path, columns: &Columns, delimiter: u8, is_compressed: bool) -> Result<Pictures, Error> {
    let file = File::open(path)?;
    let file: Box<dyn Read> = if is_compressed { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) };
    let malformed = |error: csv::Error| Error::Format { path: path.to_owned(), reason: error.to_string() };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let names = reader.headers().map_err(malformed)?.clone();
    let names: Vec<&str> = names.iter().map(|name| name.trim_start_matches('\u{feff}').trim()).collect();
    let places = columns.places(path, &names, |_, _| Ok(()))?;
    let records = reader.records().collect::<Result<Vec<_>, _>>().map_err(malformed)?;

    let others = |column: &usize| *column != places.path && Some(*column) != places.id && Some(*column) != places.label;
    let metadata: Vec<(usize, Kind)> =
        (0..names.len()).filter(others).map(|column| (column, Kind::of(records.iter().map(|record| &record[column])))).collect();
    let mut pictures = Pictures::default();
    for (row, record) in (1..).zip(&records) {
        let values = metadata.iter().filter(|(column, _)| !record[*column].is_empty());
        let item = Item {
            id: places.id.map_or_else(String::new, |column| record[column].to_owned()),
            labels: places.label.map_or_else(Vec::new, |column| columns.split(&record[column])),
            metadata: values.map(|(column, kind)| (names[*column].to_owned(), kind.value(&record[*column]))).collect(),
            ..Item::default()
        };
        pictures.add(row, &record[places.path], item);
    }
    pictures.distinct(path)
}

/// What all cells of a column are. A filter compares numbers with numbers, so that one cell alone cannot decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Number,
    Boolean,
    Text,
}

impl Kind {
    fn of<'a>(cells: impl Iterator<Item = &'a str>) -> Self {
        let (mut numbers, mut booleans) = (true, true);
        for cell in cells.filter(|cell| !cell.is_empty()) {
            numbers &= number(cell).is_some();
            booleans &= boolean(cell).is_some();
        }
        match (numbers, booleans) {
            (true, false) => Self::Number,
            (false, true) => Self::Boolean,
            _ => Self::Text,
        }
    }

    fn value(self, cell: &str) -> Value {
        let value = match self {
            Self::Number => number(cell).map(Value::Number),
            Self::Boolean => boolean(cell).map(Value::Bool),
            Self::Text => None,
        };
        value.unwrap_or_else(|| Value::String(cell.to_owned()))
    }
}

/// A number as JSON writes it: `007` is no number, and neither is one that would lose digits.
fn number(cell: &str) -> Option<Number> {
    let number: Number = cell.parse().ok()?;
    let whole = cell.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    (!whole || number.is_i64() || number.is_u64()).then_some(number)
}

fn boolean(cell: &str) -> Option<bool> {
    match cell {
        "true" | "True" => Some(true),
        "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_text(text: &str, columns: &Columns) -> Result<Pictures, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        fs_err::write(&path, text).unwrap();
        read(&path, columns, b',', false)
    }

    #[test]
    fn columns_become_ids_labels_and_typed_metadata() {
        let text = "\u{feff}year,path,labels,zip,seen,note\n\
                    2001,a/1.jpg,cat;  dog,00501,True,\"with, comma\"\n\
                    ,\"b \"\"x\"\".png\",,10115,false,\n\
                    1999.5,c.jpg,;bird;,99999,true,7\n";
        let columns = Columns { separator: Some(";".into()), ..Columns::default() };
        let pictures = read_text(text, &columns).unwrap();
        let items: Vec<&Item> = pictures.entries.iter().map(|entry| &entry.item).collect();
        assert_eq!(items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["a/1.jpg", "b \"x\".png", "c.jpg"]);
        assert_eq!(items.iter().map(|item| item.labels.clone()).collect::<Vec<_>>(), [vec!["cat", "dog"], vec![], vec!["bird"]]);
        assert_eq!(Value::Object(items[0].metadata.clone()), json!({"year": 2001, "zip": "00501", "seen": true, "note": "with, comma"}));
        assert_eq!(Value::Object(items[1].metadata.clone()), json!({"zip": "10115", "seen": false}));
        assert_eq!(Value::Object(items[2].metadata.clone()), json!({"year": 1999.5, "zip": "99999", "seen": true, "note": "7"}));
    }

    #[test]
    fn columns_can_be_named_and_rows_without_a_path_are_skipped() {
        let columns = Columns { path: Some("where".into()), id: Some("key".into()), label: Some("what".into()), separator: None };
        let pictures = read_text("what,where,key\na;b,x.jpg,1\nc,,2\n", &columns).unwrap();
        assert_eq!(pictures.entries[0].item, Item { id: "1".into(), labels: vec!["a;b".into()], ..Item::default() });
        assert_eq!(pictures.skipped, [(2, "it has no path".to_owned())]);
        let error = read_text("a,b\n1,2\n", &Columns::default()).err().unwrap().to_string();
        assert!(error.contains("no column path") && error.contains("it has a, b"), "{error}");
        let error = read_text("path\nx\n", &columns).err().unwrap().to_string();
        assert!(error.contains("no column where"), "{error}");
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_line() {
        let error = read_text("path,label\na\n", &Columns::default()).err().unwrap().to_string();
        assert!(error.contains("line: 2"), "{error}");
        let error = read_text("path\na\nb\na\n", &Columns::default()).err().unwrap().to_string();
        assert!(error.contains("rows 1 and 3"), "{error}");
        assert!(read_text("path\n", &Columns::default()).unwrap().entries.is_empty());
        assert!(read_text("", &Columns::default()).is_err());
    }

    #[test]
    fn numbers_that_would_change_stay_text() {
        assert!(["0", "-3", "2.50", "1e5"].iter().all(|cell| number(cell).is_some()));
        assert!(["007", "+1", "NaN", "", "123456789012345678901234", " 1"].iter().all(|cell| number(cell).is_none()));
    }
}
