//! Writes files like those of `torch.save`, to test how they are read.

use std::io::Write as _;
use std::path::Path;

use zip::write::{SimpleFileOptions, ZipWriter};

use super::{Tensors, little_endian};

/// A pickle under construction, in protocol 2.
pub(crate) struct Pickle(Vec<u8>);

impl Pickle {
    /// The start of a pickle.
    pub(crate) fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    /// Adds instructions as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Text.
    pub(crate) fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    /// An integer.
    pub(crate) fn int(self, number: i32) -> Self {
        self.raw(b"J").raw(&number.to_le_bytes())
    }

    /// A class or function.
    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// A tuple of integers.
    pub(crate) fn ints(self, numbers: &[i32]) -> Self {
        numbers.iter().fold(self.raw(b"("), |pickle, number| pickle.int(*number)).raw(b"t")
    }

    /// A view of the storage `key`, of the class `kind` and of `len` elements.
    pub(crate) fn view(self, kind: &str, key: &str, len: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", kind)
            .text(key)
            .text("cpu")
            .int(len)
            .raw(b"tQ")
            .int(offset)
            .ints(shape)
            .ints(strides)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }

    /// A contiguous float32 tensor that is all of the storage `key`.
    pub(crate) fn tensor(self, key: &str, shape: &[usize]) -> Self {
        let shape: Vec<i32> = shape.iter().map(|side| *side as i32).collect();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        self.view("FloatStorage", key, shape.iter().product(), 0, &shape, &strides)
    }

    /// The finished pickle.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.push(b'.');
        self.0
    }
}

/// Writes the zip container with the given pickle and storages.
pub(crate) fn save(path: &Path, pickle: &[u8], storages: &[(String, Vec<u8>)]) {
    let mut zip = ZipWriter::new(fs_err::File::create(path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut entry = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("archive/{name}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    };
    entry("data.pkl", pickle);
    entry("byteorder", b"little");
    for (key, bytes) in storages {
        entry(&format!("data/{key}"), bytes);
    }
    zip.finish().unwrap();
}

/// Writes tensors as a state dictionary; `parameters` wraps each as `torch.nn.Parameter`.
pub(crate) fn save_state(path: &Path, tensors: &Tensors, parameters: bool) {
    let mut pickle = Pickle::new().raw(b"}(");
    let mut storages = Vec::new();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let key = index.to_string();
        pickle = pickle.text(name);
        if parameters {
            pickle = pickle.global("torch._utils", "_rebuild_parameter").raw(b"(");
        }
        pickle = pickle.tensor(&key, &tensor.shape);
        if parameters {
            pickle = pickle.raw(b"\x88").global("collections", "OrderedDict").raw(b")RtR");
        }
        storages.push((key, little_endian(&tensor.data)));
    }
    save(path, &pickle.raw(b"u").end(), &storages);
}
