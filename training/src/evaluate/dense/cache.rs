//! What a backbone said of pictures: in memory up to a bound, then in a file that has no name.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_train::evaluate::dense::{Cache, Example};
//! use dino_vision::transform::PatchGrid;
//!
//! // Without memory, examples go to the disk.
//! let mut cache = Cache::new(0);
//! let grid = PatchGrid { rows: 1, columns: 2 };
//! let features = Arc::new(ndarray::array![[1.0, 0.0], [0.0, 1.0]]);
//! cache.push(Example { features: features.clone(), grid, labels: Arc::from([0_u8, 1]), size: grid })?;
//! assert!(cache.on_disk() > 0);
//! assert_eq!(cache.get(0)?.labels[..], [0, 1]);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytemuck::Pod;
use dino_vision::transform::PatchGrid;
use ndarray::Array2;

/// A picture: its features, and what is known of its pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Example<L> {
    /// `[patches, F]`.
    pub features: Arc<Array2<f32>>,
    /// Of the patches.
    pub grid: PatchGrid,
    /// Row by row, one for each cell of `size`.
    pub labels: Arc<[L]>,
    /// Rows and columns of the labels.
    pub size: PatchGrid,
}

enum Place<L> {
    Memory(Example<L>),
    /// Features, then labels, from this byte on.
    File {
        start: u64,
        shape: (usize, usize),
        grid: PatchGrid,
        size: PatchGrid,
    },
}

/// Examples by their numbers.
pub struct Cache<L> {
    places: Vec<Place<L>>,
    /// Bytes of memory that are left.
    free: usize,
    file: Option<File>,
    end: u64,
}

impl<L: Pod> Cache<L> {
    /// Holds up to `memory` bytes in memory.
    pub fn new(memory: usize) -> Self {
        Self { places: Vec::new(), free: memory, file: None, end: 0 }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes on the disk.
    pub fn on_disk(&self) -> u64 {
        self.end
    }

    /// Adds an example, in the folder of temporary files where the memory is full.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn push(&mut self, example: Example<L>) -> Result<()> {
        let features = example.features.as_standard_layout();
        let bytes = [bytemuck::cast_slice(features.as_slice().unwrap_or_default()), bytemuck::cast_slice(&example.labels)];
        let length = bytes[0].len() + bytes[1].len();
        if let Some(free) = self.free.checked_sub(length) {
            self.free = free;
            self.places.push(Place::Memory(example));
            return Ok(());
        }
        self.free = 0;
        let Example { grid, size, .. } = example;
        let (start, shape) = (self.end, example.features.dim());
        let write = |file: &mut Option<File>| -> std::io::Result<()> {
            let file = match file {
                Some(file) => file,
                None => file.insert(tempfile::tempfile()?),
            };
            bytes.iter().try_for_each(|bytes| file.write_all(bytes))
        };
        let why =
            || format!("features cannot be stored in {}: raise --cache, or let TMPDIR name another folder", std::env::temp_dir().display());
        write(&mut self.file).with_context(why)?;
        self.end += length as u64;
        self.places.push(Place::File { start, shape, grid, size });
        Ok(())
    }

    /// The example of a number.
    ///
    /// # Errors
    /// Where the file cannot be read.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, index: usize) -> Result<Example<L>> {
        match &self.places[index] {
            Place::Memory(example) => Ok(example.clone()),
            &Place::File { start, shape, grid, size } => {
                let mut features = vec![0.0_f32; shape.0 * shape.1];
                let mut labels = vec![L::zeroed(); size.len()];
                let file = self.file.as_ref().context("the file of features is gone")?;
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut features);
                file.read_exact_at(bytes, start)?;
                let start = start + bytes.len() as u64;
                file.read_exact_at(bytemuck::cast_slice_mut(&mut labels), start)?;
                Ok(Example { features: Arc::new(Array2::from_shape_vec(shape, features)?), grid, labels: labels.into(), size })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_back_from_memory_and_from_the_file() {
        let grid = PatchGrid { rows: 1, columns: 2 };
        let size = PatchGrid { rows: 2, columns: 3 };
        let example = |number: f32| Example {
            features: Arc::new(Array2::from_shape_fn((2, 4), |(row, column)| number + (row * 4 + column) as f32)),
            grid,
            labels: (0..6).map(|at| at + number as u8).collect(),
            size,
        };
        let mut cache = Cache::new(100);
        for number in 0..5_u8 {
            cache.push(example(number.into())).unwrap();
        }
        assert_eq!((cache.len(), cache.on_disk()), (5, 3 * 38));
        for number in [4_u8, 0, 2, 3, 1] {
            assert_eq!(cache.get(number.into()).unwrap(), example(number.into()));
        }
    }
}
