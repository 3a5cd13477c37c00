//! Manifests: tables of ids, paths or URLs, and labels, as CSV or one JSON object a line.

use std::io::{BufRead, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::address::Address;
use super::list::{found, line};
use super::{Error, Failure, Listing};

/// Names of the column that says where a picture is, the first that there is counts.
const PLACES: [&str; 4] = ["path", "url", "file_name", "file"];

/// A row of a manifest.
#[derive(Deserialize)]
struct Row {
    id: Option<Value>,
    path: Option<String>,
    url: Option<String>,
    file_name: Option<String>,
    file: Option<String>,
    #[serde(alias = "labels")]
    label: Option<Value>,
}

/// Reads one object a line. Paths begin at `folder`.
pub(super) fn json_lines(mut file: impl BufRead, name: &str, folder: &Path) -> Result<Listing, Error> {
    let mut listing = Listing::default();
    for number in 1_usize.. {
        let Some(line) = line(&mut file, name, number)? else { break };
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(&line).map_err(|error| Error::Wrong(format!("{name}, line {number}: {error}")))?;
        let place = row.path.or(row.url).or(row.file_name).or(row.file);
        let labels = match row.label {
            Some(Value::Array(labels)) => labels.iter().filter_map(string).collect(),
            label => label.as_ref().and_then(string).into_iter().collect(),
        };
        add(&mut listing, name, number, row.id.as_ref().and_then(string), place, labels, folder)?;
    }
    Ok(listing)
}

/// Reads a table whose first line has the names of its columns. Paths begin at `folder`.
pub(super) fn csv(file: impl Read, delimiter: u8, name: &str, folder: &Path) -> Result<Listing, Error> {
    let malformed = |error: csv::Error| Error::Format { shown: name.to_owned(), reason: error.to_string() };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let names: Vec<String> =
        reader.headers().map_err(malformed)?.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_ascii_lowercase()).collect();
    let column = |wanted: &[&str]| wanted.iter().find_map(|wanted| names.iter().position(|name| name == wanted));
    let reason = || format!("it has no column {}; it has {}", PLACES.join(" or "), names.join(", "));
    let place = column(&PLACES).ok_or_else(|| Error::Format { shown: name.to_owned(), reason: reason() })?;
    let (id, label) = (column(&["id"]), column(&["label", "labels"]));
    let mut listing = Listing::default();
    for (number, record) in (1..).zip(reader.records()) {
        let record = record.map_err(malformed)?;
        let cell = |column: Option<usize>| column.map(|column| record[column].to_owned()).filter(|cell| !cell.is_empty());
        add(&mut listing, name, number, cell(id), cell(Some(place)), cell(label).into_iter().collect(), folder)?;
    }
    Ok(listing)
}

fn add(
    listing: &mut Listing,
    name: &str,
    number: usize,
    id: Option<String>,
    place: Option<String>,
    labels: Vec<String>,
    folder: &Path,
) -> Result<(), Error> {
    let Some(place) = place.filter(|place| !place.is_empty()) else {
        let path = format!("{name}, row {number}");
        listing.failures.push(Failure { id: id.unwrap_or_else(|| path.clone()), path, reason: "it has neither path nor url".to_owned() });
        return Ok(());
    };
    let address = Address::parse(&place, folder).map_err(|reason| Error::Wrong(format!("{name}, row {number}: {reason}")))?;
    listing.found.push(found(id.as_deref().unwrap_or(&place), labels, address));
    Ok(())
}

/// A string or number of a cell.
fn string(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Found, Place};
    use super::*;

    fn rows(listing: Listing) -> Vec<(String, Vec<String>, String)> {
        let row = |found| match found {
            Found::Picture(picture) => (picture.id.clone(), picture.labels.clone(), picture.place.shown()),
            Found::Packed(file) => (file.id.clone(), vec!["packed".to_owned()], file.address.to_string()),
        };
        listing.found.into_iter().map(row).collect()
    }

    fn owned(id: &str, labels: &[&str], at: &str) -> (String, Vec<String>, String) {
        (id.to_owned(), labels.iter().map(|&label| label.to_owned()).collect(), at.to_owned())
    }

    #[test]
    fn json_lines_have_ids_places_and_labels() {
        let text = concat!(
            r#"{"id": 7, "path": "a b.jpg", "label": "cat", "more": [1]}"#,
            "\n\n",
            r#"{"url": "https://example.org/x.jpg?size=1", "labels": ["a", 2]}"#,
            "\n",
            r#"{"id": "none", "label": 3}"#,
            "\n",
            r#"{"path": "/abs/s.tar"}"#
        );
        let listing = json_lines(text.as_bytes(), "m.jsonl", Path::new("root")).unwrap();
        assert_eq!(
            listing.failures,
            [Failure { id: "none".into(), path: "m.jsonl, row 4".into(), reason: "it has neither path nor url".into() }]
        );
        let wanted = [
            owned("7", &["cat"], "root/a b.jpg"),
            owned("https://example.org/x.jpg?size=1", &["a", "2"], "https://example.org/x.jpg?size=1"),
            owned("/abs/s.tar", &["packed"], "/abs/s.tar"),
        ];
        assert_eq!(rows(listing), wanted);
        let error = json_lines(&b"{}\n{\"path\": 3}"[..], "m.jsonl", Path::new("")).err().unwrap().to_string();
        assert!(error.contains("m.jsonl, line 2"), "{error}");
        assert!(!matches!(Place::At(Address::File("x".into())), Place::Member { .. }));
    }

    #[test]
    fn tables_have_them_too() {
        let listing = csv(&b"\xef\xbb\xbfLabel,URL,id\ncat,file:///a%20b.jpg,1\n,x.jpg,\n"[..], b',', "m.csv", Path::new("root")).unwrap();
        assert_eq!(rows(listing), [owned("1", &["cat"], "/a b.jpg"), owned("x.jpg", &[], "root/x.jpg")]);
        let error = csv(&b"a,b\n1,2\n"[..], b',', "m.csv", Path::new("")).err().unwrap().to_string();
        assert!(error.contains("m.csv: it has no column path or url") && error.contains("it has a, b"), "{error}");
    }
}
