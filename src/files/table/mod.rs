//! Tables that say what a collection gets: CSV and Parquet, one row a picture or a vector.
//!
//! A CSV file may be compressed with gzip. One column has the paths, others may have ids and labels; all that is left becomes metadata.
//!
//! ```
//! use dino_server::files::table::{Columns, Table, open};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("cats.csv");
//! std::fs::write(&path, "path,label,year\ncat/1.jpg,cat,2024\n")?;
//!
//! let columns = Columns { path: None, id: None, label: None, separator: None };
//! let Table::Pictures(table) = open(&path, &columns, false)? else { panic!("a CSV file has no vectors") };
//! let item = &table.entries[0].item;
//! assert_eq!((item.id.as_str(), item.labels[0].as_str()), ("cat/1.jpg", "cat"));
//! assert!(item.metadata.contains_key("year"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod csv;
#[cfg(feature = "parquet")]
mod ids;
#[cfg(feature = "parquet")]
pub(super) mod json;
#[cfg(feature = "parquet")]
mod parquet;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::files::vectors;
use crate::index::{Item, MAX_STRING};
use dino_vision::bulk::names;

#[cfg(feature = "parquet")]
pub use parquet::{VectorBatch, VectorRow, Vectors};

/// Columns with a meaning of their own; `None` takes the usual names where the table has them.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Paths of the pictures: `path`, `file_name`, `filename`, `file` or `image`.
    pub path: Option<String>,
    /// Ids of the items: `id`, else the path.
    pub id: Option<String>,
    /// Their labels: `label` or `labels`.
    pub label: Option<String>,
    /// Separator of several labels of one cell; without it a cell is one label.
    pub separator: Option<String>,
}

/// One row: a picture that becomes an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Number of the row, from 1, without the header.
    pub row: usize,
    /// Path as the table has it.
    pub path: String,
    /// What is known of it.
    pub item: Item,
}

/// What a table holds.
pub enum Table {
    /// Pictures to embed.
    Pictures(Pictures),
    /// Vectors that `embed` made.
    #[cfg(feature = "parquet")]
    Vectors(Box<Vectors>),
}

/// The pictures of a table.
#[derive(Debug, Default)]
pub struct Pictures {
    /// Rows in their order.
    pub entries: Vec<Entry>,
    /// Rows that cannot be items: number and reason.
    pub skipped: Vec<(usize, String)>,
    /// Columns that are left out, with the reason.
    pub ignored: Vec<String>,
    /// Places in `entries` of those whose id is their path.
    named_by_path: Vec<usize>,
}

/// Why a table cannot be read. All variants name the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Its name says nothing of its format.
    #[error("{}: a table ends in .csv, .tsv or .parquet (the first two may have .gz behind)", .0.display())]
    Kind(PathBuf),
    /// It is Parquet, which this build does not read.
    #[cfg(not(feature = "parquet"))]
    #[error("{}: {}", .0.display(), super::NO_PARQUET)]
    NoParquet(PathBuf),
    /// The file is not of its format.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The table.
        path: PathBuf,
        /// What is wrong, with the line where that is known.
        reason: String,
    },
    /// A column is missing.
    #[error("{} has no column {wanted}; it has {found}", path.display())]
    NoColumn {
        /// The table.
        path: PathBuf,
        /// What is needed.
        wanted: String,
        /// The columns there are.
        found: String,
    },
    /// A column that is needed is of a kind that cannot be read.
    #[error("{}: the column {column} {reason}", path.display())]
    Unfit {
        /// The table.
        path: PathBuf,
        /// Name of the column.
        column: String,
        /// What it is, and what it has to be.
        reason: String,
    },
    /// Two rows are the same item.
    #[error("{}: rows {first} and {second} have the same id {id:?}: an item is one row (several labels go into one cell)", path.display())]
    Repeated {
        /// The table.
        path: PathBuf,
        /// Their id.
        id: String,
        /// Number of the first row.
        first: usize,
        /// Number of the second.
        second: usize,
    },
    /// There are vectors, but nothing says which model made them.
    #[error("{}: the column {} does not say which model it is of (embed notes that); --embed takes the pictures instead", .0.display(), vectors::EMBEDDING)]
    UnknownVectors(PathBuf),
    /// The note on the vectors cannot be read.
    #[error(transparent)]
    Vectors(#[from] vectors::Error),
}

/// Opens a table. With `embed`, the vectors of one that has them are ignored, and its pictures embedded.
///
/// # Errors
/// See [`Error`]; all of a CSV file is checked, and of a Parquet file whatever is not vectors: where it has any, the ids of their rows.
#[cfg_attr(not(feature = "parquet"), expect(unused_variables, reason = "only Parquet holds vectors"))]
pub fn open(path: &Path, columns: &Columns, embed: bool) -> Result<Table, Error> {
    match format(path)? {
        Format::Separated { separator, is_compressed } => csv::read(path, columns, separator, is_compressed).map(Table::Pictures),
        #[cfg(feature = "parquet")]
        Format::Parquet => parquet::open(path, columns, embed),
    }
}

/// Refuses the name of a table that this build cannot read, before anything else is done.
///
/// # Errors
/// `Error::NoParquet`, which exists only without the feature `parquet`.
pub fn supported(path: PathBuf) -> Result<PathBuf, Error> {
    match format(&path) {
        #[cfg(not(feature = "parquet"))]
        Err(error @ Error::NoParquet(_)) => Err(error),
        _ => Ok(path),
    }
}

/// How a table is written.
enum Format {
    Separated {
        separator: u8,
        is_compressed: bool,
    },
    #[cfg(feature = "parquet")]
    Parquet,
}

/// What the name of a table says.
fn format(path: &Path) -> Result<Format, Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let is_compressed = plain.len() < name.len();
    match plain.rsplit_once('.').map(|(_, ending)| ending) {
        Some("csv") => Ok(Format::Separated { separator: b',', is_compressed }),
        Some("tsv") => Ok(Format::Separated { separator: b'\t', is_compressed }),
        #[cfg(feature = "parquet")]
        Some("parquet") if !is_compressed => Ok(Format::Parquet),
        #[cfg(not(feature = "parquet"))]
        Some("parquet") if !is_compressed => Err(Error::NoParquet(path.to_owned())),
        _ => Err(Error::Kind(path.to_owned())),
    }
}

/// What a column with a meaning of its own holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A string in each cell.
    Text,
    /// A string or a list of strings.
    Labels,
}

/// The columns of these names, in the order of the names.
fn named<'a>(names: &'a [&'a str], usual: &'a [&'a str]) -> impl Iterator<Item = usize> + 'a {
    usual.iter().filter_map(|usual| names.iter().position(|name| name.eq_ignore_ascii_case(usual)))
}

/// Where the columns are in a table.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    path: usize,
    id: Option<usize>,
    label: Option<usize>,
}

impl Columns {
    /// Where the columns are among `names`; `fits` says what is wrong with a column that cannot have its meaning.
    fn places(&self, file: &Path, names: &[&str], fits: impl Fn(usize, Role) -> Result<(), String>) -> Result<Places, Error> {
        let unfit = |column: usize, reason| Error::Unfit { path: file.to_owned(), column: names[column].to_owned(), reason };
        let find = |wanted: &Option<String>, usual: &[&str], role: Role| match wanted {
            Some(wanted) => {
                let place = names.iter().position(|name| name == wanted).ok_or_else(|| missing(file, wanted.clone(), names))?;
                fits(place, role).map_err(|reason| unfit(place, reason))?;
                Ok::<_, Error>(Some(place))
            }
            None => Ok(named(names, usual).find(|&place| fits(place, role).is_ok())),
        };
        let usual = ["path", "file_name", "filename", "file", "image"];
        let path = find(&self.path, &usual, Role::Text)?;
        let path = path.ok_or_else(|| match named(names, &usual).find_map(|place| Some((place, fits(place, Role::Text).err()?))) {
            Some((place, reason)) => unfit(place, format!("{reason} (name another with --path-column)")),
            None => missing(file, format!("{} (name another with --path-column)", usual.join(" or ")), names),
        })?;
        Ok(Places { path, id: find(&self.id, &["id"], Role::Text)?, label: find(&self.label, &["label", "labels"], Role::Labels)? })
    }

    /// The labels of a cell.
    fn split(&self, cell: &str) -> Vec<String> {
        let labels: Vec<&str> = match &self.separator {
            Some(separator) => cell.split(separator.as_str()).map(str::trim).collect(),
            None => vec![cell],
        };
        labels.into_iter().filter(|label| !label.is_empty()).map(str::to_owned).collect()
    }
}

fn missing(file: &Path, wanted: String, names: &[&str]) -> Error {
    Error::NoColumn { path: file.to_owned(), wanted, found: names.join(", ") }
}

impl Pictures {
    /// Adds a row, or why it is none.
    fn add(&mut self, row: usize, path: &str, item: Item) {
        let named_by_path = item.id.is_empty();
        match check(path, item) {
            Ok(item) => {
                self.named_by_path.extend(named_by_path.then_some(self.entries.len()));
                self.entries.push(Entry { row, path: path.to_owned(), item });
            }
            Err(reason) => self.skipped.push((row, reason)),
        }
    }

    /// Composes ids that are paths, and refuses ids that come twice.
    fn distinct(mut self, file: &Path) -> Result<Self, Error> {
        let ids: Vec<&str> = self.entries.iter().map(|entry| entry.item.id.as_str()).collect();
        let composed = names::ids(&ids, MAX_STRING);
        let composed: Vec<String> = self.named_by_path.iter().map(|&at| composed[at].clone().into_owned()).collect();
        for (&at, id) in self.named_by_path.iter().zip(composed) {
            self.entries[at].item.id = id;
        }
        let mut rows: HashMap<&str, usize> = HashMap::with_capacity(self.entries.len());
        for Entry { row, item, .. } in &self.entries {
            if let Some(first) = rows.insert(&item.id, *row) {
                return Err(Error::Repeated { path: file.to_owned(), id: item.id.clone(), first, second: *row });
            }
        }
        Ok(self)
    }
}

/// An item that can be stored; without an id of its own its path is its id.
fn check(path: &str, mut item: Item) -> Result<Item, String> {
    if path.is_empty() {
        return Err("it has no path".to_owned());
    }
    if item.id.is_empty() {
        path.clone_into(&mut item.id);
    }
    item.check().map_err(|error| error.to_string())?;
    Ok(item)
}
