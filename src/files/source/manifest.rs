//! Manifests: tables of ids, paths or URLs, and labels, as CSV or one JSON object a line.

use std::io::{BufRead, Read};

use serde::Deserialize;
use serde_json::Value;

use super::address::Base;
use super::list::{Ids, found, line};
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

/// Reads one object a line. Paths begin at `base`.
pub(super) fn json_lines(mut file: impl BufRead, name: &str, base: &Base) -> Result<Listing, Error> {
    let (mut listing, mut ids) = (Listing::default(), Ids::default());
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
        add(&mut listing, &mut ids, format!("{name}, row {number}"), row.id.as_ref().and_then(string), place, labels, base)?;
    }
    Ok(listing)
}

/// Reads a table whose first line has the names of its columns. Paths begin at `base`.
pub(super) fn csv(file: impl Read, delimiter: u8, name: &str, base: &Base) -> Result<Listing, Error> {
    let malformed = |error: csv::Error| Error::Format { shown: name.to_owned(), reason: error.to_string() };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let names: Vec<String> =
        reader.headers().map_err(malformed)?.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_ascii_lowercase()).collect();
    let column = |wanted: &[&str]| wanted.iter().find_map(|wanted| names.iter().position(|name| name == wanted));
    let reason = || format!("it has no column {}; it has {}", PLACES.join(" or "), names.join(", "));
    let place = column(&PLACES).ok_or_else(|| Error::Format { shown: name.to_owned(), reason: reason() })?;
    let (id, label) = (column(&["id"]), column(&["label", "labels"]));
    let (mut listing, mut ids) = (Listing::default(), Ids::default());
    for (number, record) in (1..).zip(reader.records()) {
        let record = record.map_err(malformed)?;
        let cell = |column: Option<usize>| column.map(|column| record[column].to_owned()).filter(|cell| !cell.is_empty());
        let labels = cell(label).into_iter().collect();
        add(&mut listing, &mut ids, format!("{name}, row {number}"), cell(id), cell(Some(place)), labels, base)?;
    }
    Ok(listing)
}

/// Adds the picture of the row that messages call `row`.
fn add(
    listing: &mut Listing,
    ids: &mut Ids,
    row: String,
    id: Option<String>,
    place: Option<String>,
    labels: Vec<String>,
    base: &Base,
) -> Result<(), Error> {
    let Some(place) = place.filter(|place| !place.is_empty()) else {
        listing.failures.push(Failure {
            id: id.unwrap_or_else(|| row.clone()),
            path: row,
            reason: "it has neither path nor url".to_owned(),
        });
        return Ok(());
    };
    let wrong = |reason| Error::Wrong(format!("{row}: {reason}"));
    let address = base.address(&place).map_err(wrong)?;
    let id = ids.id(id, &place).map_err(wrong)?;
    listing.found.push(found(&id, labels, address));
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
    use super::super::address::Address;
    use super::super::{Found, Place};
    use super::*;

    fn base(folder: &str) -> Base {
        Base::Folder(folder.into())
    }

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
        let listing = json_lines(text.as_bytes(), "m.jsonl", &base("root")).unwrap();
        assert_eq!(
            listing.failures,
            [Failure { id: "none".into(), path: "m.jsonl, row 4".into(), reason: "it has neither path nor url".into() }]
        );
        let wanted = [
            owned("7", &["cat"], "root/a b.jpg"),
            owned("https://example.org/x.jpg", &["a", "2"], "https://example.org/x.jpg"),
            owned("/abs/s.tar", &["packed"], "/abs/s.tar"),
        ];
        assert_eq!(rows(listing), wanted);
        let error = json_lines(&b"{}\n{\"path\": 3}"[..], "m.jsonl", &base("")).err().unwrap().to_string();
        assert!(error.contains("m.jsonl, line 2"), "{error}");
        assert!(!matches!(Place::At(Address::File("x".into())), Place::Member { .. }));
    }

    #[test]
    fn tables_have_them_too() {
        let listing = csv(&b"\xef\xbb\xbfLabel,URL,id\ncat,file:///a%20b.jpg,1\n,x.jpg,\n"[..], b',', "m.csv", &base("root")).unwrap();
        assert_eq!(rows(listing), [owned("1", &["cat"], "/a b.jpg"), owned("x.jpg", &[], "root/x.jpg")]);
        // Two addresses of one id, which is not the secret part of them.
        let twice = csv(&b"url\nhttps://x/1.jpg?id=1\nhttps://x/1.jpg?id=2\n"[..], b',', "m.csv", &base("")).err().unwrap().to_string();
        assert!(twice.contains("m.csv, row 2: https://x/1.jpg came before with another query"), "{twice}");
        let error = csv(&b"a,b\n1,2\n"[..], b',', "m.csv", &base("")).err().unwrap().to_string();
        assert!(error.contains("m.csv: it has no column path or url") && error.contains("it has a, b"), "{error}");
    }
}
