//! What stands in the file itself, without running it: where its weights are, and what they look like.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use fs_err as fs;
use onnx_rs::ast::{Attribute, DataType, Graph, Node, TensorProto};
use sha2::{Digest, Sha256};

use super::super::fingerprint::hex;
use super::super::{ModelError, Precision};

/// What a plain ONNX file says of itself.
pub(super) struct Facts {
    /// SHA-256 over the file and, after it, the files that hold its weights.
    pub(super) sha256: String,
    /// Type of most of its weights.
    pub(super) precision: Precision,
    /// Side of the patches, from the convolution that cuts them out.
    pub(super) patch: Option<usize>,
    /// Program that wrote it, with its version.
    pub(super) made_by: String,
}

impl Facts {
    /// Reads the file at `path`, and those beside it that hold its weights.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = fs::read(path)?;
        let reject = |reason: String| ModelError::Graph { path: path.to_owned(), reason };
        let model =
            onnx_rs::parse(&bytes).map_err(|error| reject(format!("it is no ONNX file, or a damaged or truncated one ({error})")))?;
        let graph = model.graph.as_ref().ok_or_else(|| reject("it is no ONNX file, or a truncated one (it holds no graph)".to_owned()))?;
        let mut hash = Sha256::new_with_prefix(&bytes);
        for location in external(graph) {
            let beside = beside(path, location).map_err(&reject)?;
            hash_file(&beside, &mut hash).map_err(|error| reject(format!("its weights are in {location}: {error}")))?;
        }
        Ok(Self {
            sha256: hex(&hash.finalize()),
            precision: precision(graph),
            patch: patch(graph),
            made_by: format!("{} {}", model.producer_name, model.producer_version).trim().to_owned(),
        })
    }
}

/// Names of the other files that hold weights.
fn external<'a>(graph: &'a Graph<'a>) -> BTreeSet<&'a str> {
    let entries = graph.initializer.iter().flat_map(TensorProto::external_data);
    entries.filter(|entry| entry.key == "location").map(|entry| entry.value).collect()
}

/// A file that an ONNX file names; only ones below the same folder are read.
fn beside(path: &Path, location: &str) -> Result<PathBuf, String> {
    let inside = !location.is_empty() && Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(format!("it says that its weights are in `{location}`, which does not lie beside it"));
    }
    Ok(path.parent().unwrap_or(Path::new("")).join(location))
}

fn hash_file(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        hash.update(&buffer[..count]);
    }
}

/// The type that holds most of the weights' numbers.
fn precision(graph: &Graph<'_>) -> Precision {
    let mut numbers = [0_i64; 3];
    for tensor in &graph.initializer {
        let count = tensor.dims().iter().product::<i64>();
        match tensor.data_type() {
            DataType::Float | DataType::Double => numbers[0] += count,
            DataType::Float16 | DataType::Bfloat16 => numbers[1] += count,
            DataType::Int8 | DataType::Uint8 => numbers[2] += count,
            _ => {}
        }
    }
    match numbers {
        [_, half, bytes] if bytes > half.max(numbers[0]) => Precision::Int8,
        [single, half, _] if half > single => Precision::F16,
        _ => Precision::F32,
    }
}

/// Side of the square kernel of the first convolution over three channels that steps by its own width.
fn patch(graph: &Graph<'_>) -> Option<usize> {
    let weight = |name: &str| graph.initializer.iter().find(|tensor| tensor.name() == name);
    let cuts = |node: &Node<'_>| {
        let [_, 3, height, width] = weight(node.input.get(1)?)?.dims() else { return None };
        let strides = &attribute(node, "strides")?.ints;
        (height == width && *strides == [*height, *width]).then(|| usize::try_from(*height).ok()).flatten()
    };
    graph.node.iter().filter(|node| node.op_type.as_str() == "Conv").find_map(cuts)
}

fn attribute<'a>(node: &'a Node<'a>, name: &str) -> Option<&'a Attribute<'a>> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}
