//! What the file itself says, without running it: where its weights are, and what they look like.

use std::io::Read;
use std::path::{Path, PathBuf};

use fs_err as fs;
use onnx_rs::ast::{Attribute, DataType, Graph, Node};
use sha2::{Digest, Sha256};

use super::super::{ModelError, Precision};

/// Side of the largest patch that a convolution is believed to cut out.
const MOST_PATCH: i64 = 64;
/// Bytes of the largest file: Protocol Buffers end there.
const MOST_BYTES: u64 = 1 << 31;

/// What a plain ONNX file says of itself.
pub(super) struct GraphInfo {
    /// Type of most of its weights.
    pub(super) precision: Precision,
    /// Side of the patches, from the convolution that cuts them out.
    pub(super) patch: Option<usize>,
    /// Program that wrote it, with its version.
    pub(super) made_by: String,
}

impl GraphInfo {
    /// Looks into `bytes`, the file at `path` that ONNX Runtime has accepted.
    pub(super) fn of(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let reject = |reason: String| ModelError::Graph { path: path.to_owned(), reason };
        let model =
            onnx_rs::parse(bytes).map_err(|error| reject(format!("it is no ONNX file, or a damaged or truncated one ({error})")))?;
        let graph = model.graph.as_ref().ok_or_else(|| reject("it is no ONNX file, or a truncated one (it holds no graph)".to_owned()))?;
        Ok(Self {
            precision: precision(graph),
            patch: patch(graph),
            made_by: format!("{} {}", model.producer_name, model.producer_version).trim().chars().take(100).collect(),
        })
    }
}

/// The bytes of the file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    let length = fs::metadata(path)?.len();
    if length >= MOST_BYTES {
        let reason = format!("it has {length} bytes, and ONNX files are shorter than 2 GiB; larger weights are kept in a file beside it");
        return Err(ModelError::Graph { path: path.to_owned(), reason });
    }
    Ok(fs::read(path)?)
}

/// SHA-256 over the file and, after it, the files that hold its weights.
pub(super) fn sha256(path: &Path, beside: &[PathBuf]) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    hash_file(path, &mut hash)?;
    sha256_after(hash, beside)
}

/// As [`sha256`], where the file itself went into the hash already.
pub(super) fn sha256_after(mut hash: Sha256, beside: &[PathBuf]) -> std::io::Result<String> {
    beside.iter().try_for_each(|file| hash_file(file, &mut hash))?;
    Ok(hex::encode(hash.finalize()))
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
        let count = tensor.dims().iter().fold(1, |count: i64, side| count.saturating_mul(*side));
        let add = |sum: &mut i64| *sum = sum.saturating_add(count);
        match tensor.data_type() {
            DataType::Float | DataType::Double => add(&mut numbers[0]),
            DataType::Float16 | DataType::Bfloat16 => add(&mut numbers[1]),
            DataType::Int8 | DataType::Uint8 => add(&mut numbers[2]),
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
        let square = height == width && (1..=MOST_PATCH).contains(height);
        (square && *strides == [*height, *width]).then_some(*height as usize)
    };
    graph.node.iter().filter(|node| node.op_type.as_str() == "Conv").find_map(cuts)
}

fn attribute<'a>(node: &'a Node<'a>, name: &str) -> Option<&'a Attribute<'a>> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}
