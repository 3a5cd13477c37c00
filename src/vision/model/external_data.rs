//! Weights that a graph keeps in files beside it (ONNX external data).

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::{ModelError, fingerprint};
use crate::links;
use crate::protobuf::{Malformed, fields};

/// A file that holds weights, in memory.
#[derive(Clone, Debug)]
pub(super) struct DataFile {
    /// What the graph calls it.
    pub(super) name: String,
    pub(super) bytes: Arc<[u8]>,
}

/// The bytes of a graph and of the files beside it.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) graph: Vec<u8>,
    pub(super) data: Vec<DataFile>,
}

impl DataFile {
    /// Reads the file that the graph at `path` calls `name`. Links are followed: ONNX Runtime refuses those that lead out of the graph's
    /// folder, and in the cache of a hub every file is such a link.
    pub(super) fn read(path: &Path, name: &str) -> Result<Self, ModelError> {
        let file = place(path, name)?;
        let mut source = fs::File::open(&file)?;
        let length = source.metadata()?.len() as usize;
        // An error where there is no such memory: an `Arc` would end the program.
        Vec::<u8>::new().try_reserve_exact(length).map_err(std::io::Error::from)?;
        // Room for all of it at once, and no second copy.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
        source.read_exact(Arc::get_mut(&mut bytes).expect("it is shared with nothing yet"))?;
        Ok(Self { name: name.to_owned(), bytes })
    }

    /// SHA-256 in hex.
    pub(super) fn sha256(&self) -> String {
        fingerprint::sha256(&self.bytes)
    }
}

impl Loaded {
    /// Reads a graph and all that it names.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        Self::of(path, fs::read(path)?)
    }

    /// Reads all that a graph names; `graph` is the content of the file at `path`.
    pub(super) fn of(path: &Path, graph: Vec<u8>) -> Result<Self, ModelError> {
        let data = names(path, &graph)?.iter().map(|name| DataFile::read(path, name)).collect::<Result<_, _>>()?;
        Ok(Self { graph, data })
    }

    /// SHA-256 over the graph and, after it, the files in the order of their names.
    pub(super) fn sha256(&self) -> String {
        let mut hash = Sha256::new_with_prefix(&self.graph);
        self.data.iter().for_each(|file| hash.update(&file.bytes));
        hex::encode(hash.finalize())
    }
}

/// Where the files are that a graph names, in the order of their names. An error says which is missing.
pub(super) fn places(path: &Path, graph: &[u8]) -> Result<Vec<PathBuf>, ModelError> {
    names(path, graph)?.iter().map(|name| place(path, name)).collect()
}

/// Where the file is that the graph at `path` calls `name`.
fn place(path: &Path, name: &str) -> Result<PathBuf, ModelError> {
    let reject = |reason: String| ModelError::Data { path: path.to_owned(), name: name.to_owned(), reason };
    let file = beside(path, name).map_err(reject)?;
    if let Some(reason) = links::broken(&file) {
        return Err(reject(reason));
    }
    if !file.is_file() {
        let reason = format!("{} is not there: copy it beside the ONNX file, both belong together", file.display());
        return Err(reject(reason));
    }
    Ok(file)
}

/// A file that an ONNX file names; only ones below the same folder are read.
fn beside(path: &Path, location: &str) -> Result<PathBuf, String> {
    let inside = !location.is_empty() && Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err("that does not lie beside it: write the model again with its data file in the same folder".to_owned());
    }
    Ok(path.parent().unwrap_or(Path::new("")).join(location))
}

/// A message of onnx.proto that data of tensors may be in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
    ExternalData,
}

impl Message {
    /// What is in a field of it, by the numbers of onnx.proto.
    fn field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Model, 25) => Self::Function,
            (Self::Graph, 1) | (Self::Function, 7) => Self::Node,
            (Self::Node, 5) | (Self::Function, 11) => Self::Attribute,
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Self::SparseTensor,
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => Self::Tensor,
            (Self::Tensor, 13) => Self::ExternalData,
            _ => return None,
        })
    }
}

/// How deeply messages may lie in each other, as in ONNX Runtime.
const DEEPEST: usize = 100;
/// Fields of an entry of `external_data`.
const KEY: u64 = 1;
const VALUE: u64 = 2;

/// Names of all files that hold data of a graph's tensors, wherever in the graph these are.
pub(super) fn names(path: &Path, model: &[u8]) -> Result<BTreeSet<String>, ModelError> {
    let malformed = |_| ModelError::Graph { path: path.to_owned(), reason: "it is no ONNX file, or a damaged or truncated one".to_owned() };
    find_names(model).map_err(malformed)
}

fn find_names(model: &[u8]) -> Result<BTreeSet<String>, Malformed> {
    let mut names = BTreeSet::new();
    // From the whole model to the message that is being read.
    let mut open = vec![(Message::Model, fields(model))];
    while let Some((message, rest)) = open.last_mut() {
        let Some(field) = rest.next().transpose()? else {
            open.pop();
            continue;
        };
        let content = rest.content(&field);
        match message.field(field.number) {
            Some(Message::ExternalData) => names.extend(location(content)?),
            Some(_) if open.len() == DEEPEST => return Err(Malformed),
            Some(inner) => open.push((inner, fields(content))),
            None => {}
        }
    }
    Ok(names)
}

/// The file that an entry of `external_data` names; other entries say where in that file the data is.
fn location(entry: &[u8]) -> Result<Option<String>, Malformed> {
    let (mut key, mut value) = (&[][..], &[][..]);
    let all = fields(entry);
    // Of a field that is there twice the last one counts.
    for field in all.clone() {
        let field = field?;
        match field.number {
            KEY => key = all.content(&field),
            VALUE => value = all.content(&field),
            _ => {}
        }
    }
    Ok((key == b"location").then(|| String::from_utf8_lossy(value).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::message;

    /// A tensor whose data is in the file `name`.
    fn tensor(name: &str) -> Vec<u8> {
        message(13, &[message(KEY, b"location"), message(VALUE, name.as_bytes())].concat())
    }

    /// A graph with one node, whose attribute has `content`.
    fn graph_of(content: &[u8]) -> Vec<u8> {
        message(1, &message(5, content))
    }

    #[test]
    fn files_are_found_wherever_tensors_are() {
        let inner = message(6, &[message(5, &tensor("inner")), graph_of(&message(10, &tensor("list")))].concat());
        let graph = [
            message(5, &tensor("initializer")),
            message(15, &message(2, &tensor("sparse"))),
            graph_of(&message(5, &tensor("constant"))),
            graph_of(&inner),
        ];
        let function = [graph_of(&[]).as_slice(), &message(7, &message(5, &message(5, &tensor("function"))))].concat();
        // Graphs in two fields are one graph.
        let model = [message(7, &graph.concat()), message(25, &function), message(7, &message(5, &tensor("second")))].concat();
        let names: Vec<_> = find_names(&model).unwrap().into_iter().collect();
        assert_eq!(names, ["constant", "function", "initializer", "inner", "list", "second", "sparse"]);
    }

    #[test]
    fn an_entry_counts_as_onnx_runtime_reads_it() {
        let twice = [message(KEY, b"location"), message(VALUE, b"listed"), message(VALUE, b"read")].concat();
        assert_eq!(location(&twice), Ok(Some("read".to_owned())));
        assert_eq!(location(&[message(KEY, b"offset"), message(VALUE, b"16")].concat()), Ok(None));
    }

    #[test]
    fn graphs_that_nest_deeply_are_refused() {
        let nested = |depth: usize| message(7, &(0..depth).fold(Vec::new(), |graph, _| graph_of(&message(6, &graph))));
        assert_eq!(find_names(&nested(20)), Ok(BTreeSet::new()));
        assert_eq!(find_names(&nested(500)), Err(Malformed));
    }
}
