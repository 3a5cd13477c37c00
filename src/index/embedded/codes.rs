//! Vectors as bytes: a quarter of the memory of floats, and for each a bound on what that costs.
//!
//! A row x is kept as s·c with whole numbers c in -127..=127 and one scale s, and the length e of what is left, x - s·c.
//! By Cauchy-Schwarz the product of a query of length 1 with s·c is at most e away from that with x. So the nearest by
//! floats are among those whose product plus e reaches the best product minus e; everything else needs no second look.

use super::large_pages;
use super::similarity::bytes::{self, Products};

/// Rows of codes lie at multiples of this, so that the widest instructions never look across a row's end.
const STRIDE: usize = 64;
/// Stored for the number 0: the instructions multiply unsigned bytes with signed ones.
const ZERO: u8 = 128;
/// What rounding of floats may add to a product of unit vectors.
const ROUNDING: f32 = 1e-5;

/// Rows of one dimension.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Codes {
    dim: usize,
    /// `[rows, dim.next_multiple_of(STRIDE)]`, each number plus [`ZERO`].
    bytes: Vec<u8>,
    /// s of each row.
    scales: Vec<f32>,
    /// e of each row.
    errors: Vec<f32>,
}

/// A query as the sum of two rows of bytes: 15 bits a number, so that its own error is next to nothing.
pub(super) struct Query {
    high: Vec<i8>,
    low: Vec<i8>,
    high_scale: f32,
    low_scale: f32,
    /// What [`ZERO`] adds to the products.
    offsets: [i32; 2],
    error: f32,
}

impl Query {
    /// `query` `[dim]` has length 1.
    pub(super) fn new(query: &[f32]) -> Self {
        let width = query.len().next_multiple_of(STRIDE);
        let (high, high_scale) = quantise(query);
        let rest: Vec<f32> = query.iter().zip(&high).map(|(x, &code)| x - high_scale * f32::from(code)).collect();
        let (low, low_scale) = quantise(&rest);
        let left = rest.iter().zip(&low).map(|(x, &code)| x - low_scale * f32::from(code));
        let error = length(left);
        let padded = |mut codes: Vec<i8>| {
            codes.resize(width, 0);
            codes
        };
        let offset = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>() * i32::from(ZERO);
        let offsets = [offset(&high), offset(&low)];
        Self { high: padded(high), low: padded(low), high_scale, low_scale, offsets, error }
    }
}

impl Codes {
    pub(super) fn with_capacity(dim: usize, rows: usize) -> Self {
        let bytes = large_pages::with_capacity(rows * dim.next_multiple_of(STRIDE));
        Self { dim, bytes, scales: Vec::with_capacity(rows), errors: Vec::with_capacity(rows) }
    }

    pub(super) fn len(&self) -> usize {
        self.scales.len()
    }

    /// Adds a row `[dim]` of length 1.
    pub(super) fn push(&mut self, row: &[f32]) {
        let (codes, scale) = quantise(row);
        let end = self.bytes.len() + self.stride();
        self.bytes.extend(codes.iter().map(|&code| code.cast_unsigned() ^ ZERO));
        self.bytes.resize(end, ZERO);
        self.scales.push(scale);
        self.errors.push(length(row.iter().zip(codes).map(|(x, code)| x - scale * f32::from(code))));
    }

    /// Adds a row of others of the same dimension.
    pub(super) fn push_from(&mut self, other: &Self, row: usize) {
        let stride = self.stride();
        self.bytes.extend_from_slice(&other.bytes[row * stride..][..stride]);
        self.scales.push(other.scales[row]);
        self.errors.push(other.errors[row]);
    }

    /// Frees the memory that was reserved for rows that did not come.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.scales.shrink_to_fit();
        self.errors.shrink_to_fit();
    }

    /// Exchanges two rows.
    pub(super) fn swap(&mut self, a: usize, b: usize) {
        let stride = self.stride();
        for byte in 0..stride {
            self.bytes.swap(a * stride + byte, b * stride + byte);
        }
        self.scales.swap(a, b);
        self.errors.swap(a, b);
    }

    /// Between what the similarity of the query to each of `rows` is, at least and at most.
    pub(super) fn bounds(&self, query: &Query, rows: std::ops::Range<usize>, products: &mut Vec<Products>, bounds: &mut Vec<(f32, f32)>) {
        let stride = self.stride();
        bytes::products(&self.bytes[rows.start * stride..rows.end * stride], &query.high, &query.low, products);
        bounds.clear();
        for (row, &[high, low]) in rows.zip(&*products) {
            let (high, low) = ((high - query.offsets[0]) as f32, (low - query.offsets[1]) as f32);
            let product = self.scales[row] * (query.high_scale * high + query.low_scale * low);
            // |q·x - q'·x'| <= |q|·|x - x'| + |q - q'|·|x'|, and x' is no longer than 1 + |x - x'|.
            let error = self.errors[row] + query.error * (1.0 + self.errors[row]) + ROUNDING;
            bounds.push((product - error, product + error));
        }
    }

    fn stride(&self) -> usize {
        self.dim.next_multiple_of(STRIDE)
    }
}

/// Whole numbers and their scale.
fn quantise(row: &[f32]) -> (Vec<i8>, f32) {
    let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // A row of zeros has no largest number to divide by, and stays zeros.
    let scale = (largest / 127.0).max(f32::MIN_POSITIVE);
    (row.iter().map(|x| (x / scale).round() as i8).collect(), scale)
}

fn length(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() as f32
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn unit(rng: &mut StdRng, dim: usize) -> Vec<f32> {
        let row: Vec<f32> = (0..dim).map(|_| rng.random::<f32>() - 0.5).collect();
        let length = length(row.iter().copied());
        row.into_iter().map(|x| x / length).collect()
    }

    #[test]
    fn the_similarity_lies_between_its_bounds() {
        let mut rng = StdRng::seed_from_u64(3);
        for dim in [1, 3, 63, 64, 65, 384] {
            let rows: Vec<Vec<f32>> = (0..50).map(|_| unit(&mut rng, dim)).collect();
            let mut codes = Codes::with_capacity(dim, rows.len());
            for row in &rows {
                codes.push(row);
            }
            codes.swap(3, 7);
            codes.swap(3, 7);
            let query = unit(&mut rng, dim);
            let (mut products, mut bounds) = (Vec::new(), Vec::new());
            codes.bounds(&Query::new(&query), 10..50, &mut products, &mut bounds);
            assert_eq!(bounds.len(), 40);
            for (row, &(least, most)) in rows[10..].iter().zip(&bounds) {
                let exact: f64 = row.iter().zip(&query).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!(f64::from(least) <= exact && exact <= f64::from(most), "{dim}: {least} {exact} {most}");
                assert!(most - least < 0.02, "{dim}: {least} {most}");
            }
        }
    }

    #[test]
    fn the_worst_rows_keep_their_bounds() {
        // One large number makes all others small: most of the row is lost, and the bound says so.
        let mut spike = vec![0.001; 384];
        spike[0] = 1.0;
        let length = length(spike.iter().copied());
        for x in &mut spike {
            *x /= length;
        }
        let mut codes = Codes::with_capacity(384, 1);
        codes.push(&spike);
        let query = vec![(1.0 / 384.0_f32).sqrt(); 384];
        let exact: f32 = spike.iter().zip(&query).map(|(a, b)| a * b).sum();
        let mut bounds = Vec::new();
        codes.bounds(&Query::new(&query), 0..1, &mut Vec::new(), &mut bounds);
        assert!((bounds[0].0..=bounds[0].1).contains(&exact), "{bounds:?} {exact}");
    }
}
