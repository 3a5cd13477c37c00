//! Similarities between all patches of a picture, and the graph of those that are above a threshold.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use crate::cancel;

/// Rows of the similarity matrix that are computed at a time: the whole of it is never in memory. A multiple of 8.
const BLOCK: usize = 128;

/// The features with rows that are not finite set to zero, which makes them similar to nothing.
pub(super) fn finite(features: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut features = features.as_standard_layout().into_owned();
    for mut row in features.rows_mut() {
        // Of a sum that overflows nothing could be computed either.
        if !row.dot(&row).is_finite() {
            row.fill(0.0);
        }
    }
    features
}

/// Features with rows of length 1, so that products are cosines; rows of length 0 and rows that are not finite are zero.
pub(super) fn normalised(features: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut features = finite(features);
    for mut row in features.rows_mut() {
        let length = row.dot(&row).sqrt();
        if length > 0.0 {
            row /= length;
        }
    }
    features
}

/// Features minus their mean.
pub(super) fn centred(features: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut features = finite(features);
    let mean = features.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(0));
    for mut row in features.rows_mut() {
        row -= &mean;
    }
    features
}

/// Goes through the products of all pairs of rows once: `visit(first, block)`, where `block` is `[rows, n - first]`, the
/// products of row `first + i` with row `first + j`. What lies left of it is its mirror image and is not computed. Ends early
/// where the request was cancelled.
fn each_block(features: &Array2<f32>, mut visit: impl FnMut(usize, ArrayView2<'_, f32>)) {
    let count = features.nrows();
    let mut products = Array2::zeros((BLOCK.min(count), count));
    for first in (0..count).step_by(BLOCK) {
        if cancel::is_cancelled() {
            return;
        }
        let rows = BLOCK.min(count - first);
        let mut block = products.slice_mut(s![..rows, ..count - first]);
        let right = features.slice(s![first.., ..]);
        general_mat_mul(1.0, &features.slice(s![first..first + rows, ..]), &right.t(), 0.0, &mut block);
        visit(first, block.view());
    }
}

/// For each row the number of other rows with a positive product.
pub(super) struct Degrees(pub(super) Vec<u32>);

impl Degrees {
    pub(super) fn new(features: &Array2<f32>) -> Self {
        let mut degrees = vec![0; features.nrows()];
        each_block(features, |first, block| {
            let rows = block.nrows();
            for (at, row) in block.rows().into_iter().enumerate() {
                for (other, product) in row.iter().enumerate() {
                    let similar = u32::from(*product > 0.0 && other != at);
                    degrees[first + at] += similar;
                    // Pairs within the block are met from both sides.
                    degrees[first + other] += if other < rows { 0 } else { similar };
                }
            }
        });
        Self(degrees)
    }
}

/// An undirected graph, one bit per pair of nodes.
///
/// The bits are kept in bytes of eight neighbours: sums over neighbours then look up, for each byte, the sum of its eight
/// values in a table of all 256 sums ("method of the four Russians"), which takes an eighth of the additions.
pub(super) struct Graph {
    /// `[groups of eight neighbours][nodes]`.
    bytes: Vec<u8>,
    nodes: usize,
}

impl Graph {
    /// Connects the rows whose product is above `threshold`; a row with itself as well.
    pub(super) fn new(features: &Array2<f32>, threshold: f32) -> Self {
        let nodes = features.nrows();
        let mut bytes = vec![0_u8; nodes.div_ceil(8) * nodes];
        each_block(features, |first, block| {
            for (at, row) in block.rows().into_iter().enumerate() {
                let (node, row) = (first + at, row.to_slice().expect("a block's rows are contiguous"));
                let similar = &mut bytes[node / 8 * nodes + first..][..row.len()];
                for (byte, product) in similar.iter_mut().zip(row) {
                    *byte |= u8::from(*product > threshold) << (node % 8);
                }
                // The mirror image, below the block.
                let below = first + BLOCK;
                for (group, eight) in row.get(below - first..).unwrap_or_default().chunks(8).enumerate() {
                    let bits = eight.iter().enumerate().map(|(bit, product)| u8::from(*product > threshold) << bit);
                    bytes[(below / 8 + group) * nodes + node] = bits.sum();
                }
            }
        });
        Self { bytes, nodes }
    }

    /// For each node the sum of `values` over the nodes that it is connected with.
    pub(super) fn sums(&self, values: &[f64], sums: &mut [f64]) {
        sums.fill(0.0);
        let mut table = [0.0; 256];
        for (group, bytes) in self.bytes.chunks_exact(self.nodes.max(1)).enumerate() {
            let eight = &values[group * 8..self.nodes.min(group * 8 + 8)];
            for (bit, value) in eight.iter().enumerate() {
                let (known, next) = table.split_at_mut(1 << bit);
                for (sum, known) in next.iter_mut().zip(known.iter()) {
                    *sum = known + value;
                }
            }
            for (sum, byte) in sums.iter_mut().zip(bytes) {
                *sum += table[usize::from(*byte)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::{Degrees, Graph, centred, normalised};

    #[test]
    fn sums_are_those_of_the_full_matrix_at_every_size() {
        for nodes in [1, 2, 7, 8, 9, 127, 128, 129, 300] {
            let features = Array2::from_shape_fn((nodes, 5), |(row, column)| ((row * 31 + column * 17) as f32 * 0.7).sin());
            let graph = Graph::new(&features, 0.1);
            let products = features.dot(&features.t());
            let values: Vec<f64> = (0..nodes).map(|node| (node as f64 * 0.3).cos()).collect();
            let mut sums = vec![9.0; nodes];
            graph.sums(&values, &mut sums);
            for node in 0..nodes {
                let near = (0..nodes).filter(|other| products[[node, *other]] > 0.1);
                let expected: f64 = near.map(|other| values[other]).sum();
                assert!((sums[node] - expected).abs() < 1e-9, "node {node} of {nodes}");
            }
        }
    }

    #[test]
    fn degrees_are_those_of_the_full_matrix() {
        for nodes in [1, 2, 127, 128, 300] {
            let features = Array2::from_shape_fn((nodes, 5), |(row, column)| ((row * 13 + column * 29) as f32 * 0.9).sin());
            let products = features.dot(&features.t());
            let degree = |node: usize| (0..nodes).filter(|other| *other != node && products[[node, *other]] > 0.0).count() as u32;
            assert_eq!(Degrees::new(&features).0, (0..nodes).map(degree).collect::<Vec<_>>());
        }
    }

    #[test]
    fn broken_rows_are_similar_to_nothing() {
        let features = array![[3.0, 4.0], [0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::MAX, 1.0]];
        let rows = array![[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]];
        assert_eq!(normalised(features.view()), rows);
        assert!(centred(features.view()).iter().all(|value| value.is_finite()));
        assert_eq!(centred(Array2::zeros((0, 2)).view()).dim(), (0, 2));
    }
}
