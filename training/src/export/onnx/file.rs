//! ONNX files, written tensor by tensor: a large model is never in memory a second time.
//!
//! A file is a Protocol Buffers message with the graph in its field 7, and the graph has its constants in fields 5. What is not a
//! constant is small and encoded at once; the constants follow it inside the graph.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use dino_vision::protobuf::{self, fields, header, varint_field};
use fs_err::File;
use sha2::{Digest as _, Sha256};

use super::graph::{Constant, Graph};

/// The most that a Protocol Buffers message, and so an ONNX file that needs no other, can hold, less what the nodes take.
const LARGEST: usize = i32::MAX as usize - (16 << 20);
/// Constants from this many bytes on lie in the data file, if there is one. Runtimes want to see shapes in the graph.
const SMALLEST_OUTSIDE: usize = 1024;
/// Constants in the data file start at multiples of this, so that runtimes can map them into memory.
const ALIGNMENT: u64 = 4096;

/// A file that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// SHA-256 in hex.
    pub sha256: String,
    /// That of the data file beside it, if it has one.
    pub data: Option<String>,
    /// Where its constants lie.
    pub places: Places,
}

/// Where constants lie, by their names.
pub type Places = HashMap<String, Place>;

/// A run of bytes of a file.
#[derive(Clone, Debug)]
pub struct Place {
    file: String,
    start: u64,
    length: usize,
}

/// Name of the data file of an ONNX file.
pub fn data_name(name: &str) -> String {
    format!("{name}_data")
}

/// Writes the graph as the file `name` of a folder, with a data file beside it if it is `external` or too large for one file.
pub(super) fn write(graph: &Graph<'_>, folder: &Path, name: &str, external: bool) -> io::Result<Written> {
    let size: usize = graph.constants().map(|(_, constant)| constant.payload.len()).sum();
    let mut outside = Places::new();
    let data = if external || size > LARGEST { Some(write_data(graph, folder, &data_name(name), &mut outside)?) } else { None };
    let mut sink = Sink::new(BufWriter::new(File::create(folder.join(name))?));
    let mut places = encode(graph, name, &outside, &mut sink)?;
    places.extend(outside);
    Ok(Written { sha256: finish(sink)?, data, places })
}

/// The graph as an ONNX file whose large constants lie in other files.
pub(super) fn referring(graph: &Graph<'_>, places: &Places) -> io::Result<Vec<u8>> {
    let large = graph.constants().filter(|(_, constant)| constant.payload.len() >= SMALLEST_OUTSIDE).filter_map(|(name, constant)| {
        let place = places.get(name).filter(|place| place.length == constant.payload.len())?;
        Some((name.to_owned(), place.clone()))
    });
    let mut sink = Sink::new(Vec::new());
    encode(graph, "", &large.collect(), &mut sink)?;
    Ok(sink.inner)
}

fn write_data(graph: &Graph<'_>, folder: &Path, file: &str, places: &mut Places) -> io::Result<String> {
    let mut sink = Sink::new(BufWriter::new(File::create(folder.join(file))?));
    for (name, constant) in graph.constants().filter(|(_, constant)| constant.payload.len() >= SMALLEST_OUTSIDE) {
        let gap = sink.position.next_multiple_of(ALIGNMENT) - sink.position;
        sink.put(&vec![0; gap as usize])?;
        places.insert(name.to_owned(), Place { file: file.to_owned(), start: sink.position, length: constant.payload.len() });
        sink.put(&constant.payload.bytes())?;
    }
    finish(sink)
}

/// Writes the message. Constants that are not `outside` are written too, and it returns where, as places in `file`.
fn encode(graph: &Graph<'_>, file: &str, outside: &Places, sink: &mut Sink<impl Write>) -> io::Result<Places> {
    let message = graph.encode();
    let graph_field = fields(&message).filter_map(Result::ok).find(|field| field.number == GRAPH).expect("a model has a graph");
    let (key_at, inner) = (graph_field.start, graph_field.content);
    let heads: Vec<_> = graph.constants().map(|(name, constant)| head(name, constant, outside.get(name))).collect();
    let lengths: Vec<_> = graph
        .constants()
        .zip(&heads)
        .map(|((name, constant), head)| head.len() + if outside.contains_key(name) { 0 } else { constant.payload.len() })
        .collect();
    let framed: usize = lengths.iter().map(|length| header(INITIALIZER, *length as u64).len() + length).sum();
    sink.put(&message[..key_at])?;
    sink.put(&header(GRAPH, (inner.len() + framed) as u64))?;
    sink.put(&message[inner.clone()])?;
    let mut places = Places::new();
    for (((name, constant), head), length) in graph.constants().zip(&heads).zip(lengths) {
        sink.put(&header(INITIALIZER, length as u64))?;
        sink.put(head)?;
        if !outside.contains_key(name) {
            places.insert(name.to_owned(), Place { file: file.to_owned(), start: sink.position, length: constant.payload.len() });
            sink.put(&constant.payload.bytes())?;
        }
    }
    sink.put(&message[inner.end..])?;
    Ok(places)
}

// Field numbers of onnx.proto.
const GRAPH: u64 = 7;
const INITIALIZER: u64 = 5;
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;
const EXTERNAL_DATA: u64 = 13;
const DATA_LOCATION: u64 = 14;
/// The value of `data_location` for data in another file.
const EXTERNAL: u64 = 1;

/// A constant's message: all of it where its data is in another file, else up to where its bytes follow.
fn head(name: &str, constant: &Constant<'_>, outside: Option<&Place>) -> Vec<u8> {
    let mut head = Vec::new();
    for side in &constant.shape {
        head.extend(varint_field(DIMS, *side as u64));
    }
    head.extend(varint_field(DATA_TYPE, constant.data_type as u64));
    head.extend(protobuf::message(NAME, name.as_bytes()));
    if let Some(Place { file, start, length }) = outside {
        for (key, value) in [("location", file.clone()), ("offset", start.to_string()), ("length", length.to_string())] {
            head.extend(protobuf::message(
                EXTERNAL_DATA,
                &[protobuf::message(1, key.as_bytes()), protobuf::message(2, value.as_bytes())].concat(),
            ));
        }
        head.extend(varint_field(DATA_LOCATION, EXTERNAL));
    } else {
        head.extend(header(RAW_DATA, constant.payload.len() as u64));
    }
    head
}

/// What is written to, with the hash and the number of the bytes.
struct Sink<W> {
    inner: W,
    hash: Sha256,
    position: u64,
}

impl<W: Write> Sink<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), position: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        self.inner.write_all(bytes)
    }
}

fn finish(mut sink: Sink<BufWriter<File>>) -> io::Result<String> {
    sink.inner.flush()?;
    Ok(hex::encode(sink.hash.finalize()))
}
