//! The tensors of a checkpoint by name, read from disk one at a time and only when asked for.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use fs_err::File;
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value as Json;

use super::Error;
use crate::weights::hash;

/// Elements that a view may have which repeats those of a smaller storage: 64 MiB of float32.
const MOST_REPEATED: u64 = 1 << 24;

/// A float32 tensor in row-major order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// As many values as the product of the shape.
    pub data: Vec<f32>,
}

/// Where a tensor lies: a view (offset, strides) of a storage, which is a run of bytes of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    /// Index into [`Store::files`].
    pub(super) file: usize,
    pub(super) dtype: Dtype,
    /// First byte of the storage.
    pub(super) start: u64,
    /// Length of the storage in elements.
    pub(super) len: u64,
    /// First element of the view.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// Distance of neighbours along each axis, in elements.
    pub(super) strides: Vec<u64>,
}

/// All tensors of a checkpoint, and the plain values stored beside them.
#[derive(Debug, Default)]
pub struct Store {
    pub(super) files: Vec<PathBuf>,
    pub(super) tensors: BTreeMap<String, View>,
    /// Tensors that are there and cannot be read, and why.
    pub(super) unreadable: BTreeMap<String, String>,
    /// Numbers, truth values and strings by dotted path, for example `args.arch`.
    pub(super) scalars: BTreeMap<String, Json>,
}

impl Store {
    /// Adds a tensor. One that two files have, as tied weights in two shards, has to be the same in both.
    ///
    /// # Errors
    /// [`Error::Damaged`] where a name stands for two tensors.
    pub(super) fn insert(&mut self, name: &str, view: View) -> Result<(), Error> {
        let Some(first) = self.tensors.get(name).cloned() else {
            self.tensors.insert(name.to_owned(), view);
            return Ok(());
        };
        if first == view {
            return Ok(());
        }
        let file = self.files[view.file].clone();
        // Copies within one file are not compared: there may be any number of them.
        let mut is_same = first.file != view.file && first.dtype == view.dtype && first.shape == view.shape;
        if is_same {
            let old = self.read(name)?;
            self.tensors.insert(name.to_owned(), view);
            is_same = self.read(name)? == old;
        }
        if is_same { Ok(()) } else { Err(Error::Damaged { file, reason: format!("tensor {name} is there twice, and not the same") }) }
    }

    /// Names of all tensors, of those that cannot be read too.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().chain(self.unreadable.keys()).map(String::as_str)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|view| view.shape.as_slice())
    }

    /// A plain value that was stored beside the tensors.
    pub fn scalar(&self, path: &str) -> Option<&Json> {
        self.scalars.get(path)
    }

    /// Why a tensor that is there cannot be a weight, to be said behind its name.
    pub(super) fn why_no_weight(&self, name: &str) -> Option<String> {
        if let Some(reason) = self.unreadable.get(name) {
            return Some(reason.clone());
        }
        let dtype = self.tensors.get(name)?.dtype;
        // Integers are counters, or weights that mean something only with scales that the layout does not know.
        let is_float = matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16);
        (!is_float).then(|| format!("holds {dtype:?}, which weights are not read from: save it as float32, float16 or bfloat16"))
    }

    /// The files that the checkpoint consists of.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// SHA-256 over the bytes of all files, in the order of their names, in hex.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn sha256(&self) -> Result<String, Error> {
        Ok(hash::of_files(&self.files)?)
    }

    /// Reads a tensor as float32.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its view reaches outside its storage or its file, [`Error::Unsupported`] for types that
    /// have no plain conversion (8-bit floats, complex numbers).
    pub fn read(&self, name: &str) -> Result<Tensor, Error> {
        let Some(view) = self.tensors.get(name) else {
            let reason = self.unreadable.get(name).map_or("is not there", String::as_str);
            return Err(Error::Unsupported(format!("tensor {name} {reason}")));
        };
        let file = &self.files[view.file];
        let damaged = |reason: &str| Error::Damaged { file: file.clone(), reason: format!("tensor {name}: {reason}") };
        let convert =
            converter(view.dtype).ok_or_else(|| Error::Unsupported(format!("tensor {name} has the unsupported type {:?}", view.dtype)))?;

        let (count, span) = view.extent().ok_or_else(|| damaged("its view reaches outside its storage"))?;
        let size = view.dtype.bitsize() as u64 / 8;
        let mut source = File::open(file)?;
        let end = view.len.checked_mul(size).and_then(|bytes| bytes.checked_add(view.start));
        if end.is_none_or(|end| end > source.metadata().map_or(0, |data| data.len())) {
            return Err(damaged("its storage reaches past the end of the file"));
        }
        let mut bytes = vec![0; (span * size) as usize];
        source.seek(SeekFrom::Start(view.start + view.offset * size))?;
        source.read_exact(&mut bytes)?;

        let size = size as usize;
        let data = if count as u64 == span {
            // The elements fill their span, and a contiguous view has them in order.
            let values = bytes.chunks_exact(size).map(convert).collect::<Vec<_>>();
            if view.contiguous() { values } else { view.gather(count, |at| values[at]) }
        } else {
            view.gather(count, |at| convert(&bytes[at * size..(at + 1) * size]))
        };
        Ok(Tensor { shape: view.shape.clone(), data })
    }
}

impl View {
    /// A view of a whole storage in row-major order.
    pub(super) fn whole(file: usize, dtype: Dtype, start: u64, shape: Vec<usize>) -> Self {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as u64;
        }
        Self { file, dtype, start, len: shape.iter().product::<usize>() as u64, offset: 0, shape, strides }
    }

    /// Number of elements, and how many elements of the storage lie between the first and the last (both included).
    /// `None` if the view leaves its storage, or repeats elements without end.
    fn extent(&self) -> Option<(usize, u64)> {
        let count = self.shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side))?;
        if count == 0 {
            return Some((0, 0));
        }
        let mut last = 0_u64;
        for (side, stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((*side as u64 - 1).checked_mul(*stride)?)?;
        }
        let span = last.checked_add(1)?;
        let inside = self.offset.checked_add(span)? <= self.len;
        // What `expand` makes repeats elements. That may not take much more memory than the file has bytes.
        let bounded = count as u64 <= self.len.max(MOST_REPEATED);
        (inside && bounded && self.shape.len() == self.strides.len()).then_some((count, span))
    }

    fn contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(side, stride)| {
            let fits = *side == 1 || *stride == expected;
            expected *= *side as u64;
            fits
        })
    }

    /// Visits the elements in row-major order; `at` counts elements from the first of the view.
    fn gather(&self, count: usize, element: impl Fn(usize) -> f32) -> Vec<f32> {
        let mut index = vec![0; self.shape.len()];
        let mut at = 0;
        let mut data = Vec::with_capacity(count);
        for _ in 0..count {
            data.push(element(at));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis] as usize;
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] as usize * self.shape[axis];
                index[axis] = 0;
            }
        }
        data
    }
}

/// The conversion of one little-endian element to float32. The slice has the length of the type.
fn converter(dtype: Dtype) -> Option<fn(&[u8]) -> f32> {
    fn bytes<const N: usize>(slice: &[u8]) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(slice);
        array
    }
    Some(match dtype {
        Dtype::F32 => |x| f32::from_le_bytes(bytes(x)),
        Dtype::F64 => |x| f64::from_le_bytes(bytes(x)) as f32,
        Dtype::F16 => |x| f16::from_le_bytes(bytes(x)).to_f32(),
        Dtype::BF16 => |x| bf16::from_le_bytes(bytes(x)).to_f32(),
        Dtype::I64 => |x| i64::from_le_bytes(bytes(x)) as f32,
        Dtype::I32 => |x| i32::from_le_bytes(bytes(x)) as f32,
        Dtype::I16 => |x| f32::from(i16::from_le_bytes(bytes(x))),
        Dtype::I8 => |x| f32::from(i8::from_le_bytes(bytes(x))),
        Dtype::U8 | Dtype::BOOL => |x| f32::from(x[0]),
        _ => return None,
    })
}

/// File name of a path for messages and manifests.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
