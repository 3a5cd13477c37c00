//! The largest eigenvalue of a symmetric operator and its vector, without the whole decomposition.
//!
//! Lanczos' method: a Krylov basis that is kept orthogonal to itself throughout, and the largest eigenpair of the small
//! tridiagonal matrix that the operator becomes in it (Golub and Van Loan, Matrix Computations, chapter 10).

use crate::cancel;
use crate::splitmix::{self, splitmix64};

/// Most basis vectors. Clusters of eigenvalues that are still not apart then are as good as equal.
const MOST_STEPS: usize = 300;
/// Length of `A x - theta x` that is taken for zero, against the largest eigenvalue; x has length 1.
const TOLERANCE: f64 = 1e-9;

/// Operators below this are taken for zero: their reciprocals would overflow.
const LEAST_SCALE: f64 = 1e-100;

/// An eigenvalue with its vector.
#[derive(Clone, Debug)]
pub(crate) struct Eigenpair {
    pub(crate) value: f64,
    /// Of length 1.
    pub(crate) vector: Vec<f64>,
}

/// The largest eigenpair of `apply` among the vectors that are orthogonal to those of `fixed`, each of which has length 1
/// and is an eigenvector itself. `None` where there is no such vector (`start` lies in the span of `fixed`), where numbers
/// overflow, and where the request was cancelled ([`cancel`]).
///
/// The answer lies in the span of what `apply` makes of `start`: components at which `start` and every image are zero
/// stay zero.
pub(crate) fn largest(fixed: &[&[f64]], start: Vec<f64>, mut apply: impl FnMut(&[f64], &mut [f64])) -> Option<Eigenpair> {
    let mut next = start;
    let length = norm(&next);
    orthogonalise(&mut next, fixed, &[]);
    let left = norm(&next);
    if !left.is_finite() || left <= 1e-9 * length {
        return None;
    }
    scale(&mut next, 1.0 / left);

    let steps = MOST_STEPS.min(next.len().saturating_sub(fixed.len()).max(1));
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let mut small = Tridiagonal::default();
    loop {
        if cancel::is_cancelled() {
            return None;
        }
        basis.push(next);
        let last = &basis[basis.len() - 1];
        let mut image = vec![0.0; last.len()];
        apply(last, &mut image);
        small.diagonal.push(dot(last, &image));
        orthogonalise(&mut image, fixed, &basis);
        let beta = norm(&image);
        if !beta.is_finite() {
            return None;
        }
        let exhausted = basis.len() == steps || beta <= 1e-13 * small.scale();
        if exhausted || basis.len().is_multiple_of(4) {
            let (value, weights) = small.largest();
            let residual = beta * weights.last().copied().unwrap_or_default().abs();
            if exhausted || residual <= TOLERANCE * small.scale() {
                let mut vector = vec![0.0; image.len()];
                for (weight, of_basis) in weights.iter().zip(&basis) {
                    add(&mut vector, *weight, of_basis);
                }
                let length = norm(&vector);
                scale(&mut vector, 1.0 / length);
                return Some(Eigenpair { value, vector });
            }
        }
        small.beside.push(beta);
        scale(&mut image, 1.0 / beta);
        next = image;
    }
}

/// A start vector that is the same each time and orthogonal to nothing in particular.
pub(crate) fn start(length: usize) -> Vec<f64> {
    let hash = |at: usize| splitmix64((at as u64).wrapping_mul(splitmix::STEP)) >> 11;
    (0..length).map(|at| hash(at) as f64 / (1_u64 << 52) as f64 - 1.0).collect()
}

/// Takes away what lies along `fixed` and `basis`; twice, which makes it exact to rounding.
fn orthogonalise(vector: &mut [f64], fixed: &[&[f64]], basis: &[Vec<f64>]) {
    for _ in 0..2 {
        for of_basis in fixed.iter().copied().chain(basis.iter().map(Vec::as_slice)) {
            let along = dot(vector, of_basis);
            add(vector, -along, of_basis);
        }
    }
}

/// Eight sums at once, since one alone waits for its own last addition.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

fn scale(vector: &mut [f64], by: f64) {
    for value in vector {
        *value *= by;
    }
}

fn add(vector: &mut [f64], times: f64, other: &[f64]) {
    for (value, other) in vector.iter_mut().zip(other) {
        *value += times * other;
    }
}

/// A symmetric tridiagonal matrix.
#[derive(Default)]
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// One fewer.
    beside: Vec<f64>,
}

impl Tridiagonal {
    /// A bound of its eigenvalues' size (Gershgorin).
    fn scale(&self) -> f64 {
        let beside = |at: usize| self.beside.get(at).copied().unwrap_or_default();
        let row = |(at, value): (usize, &f64)| value.abs() + beside(at) + if at > 0 { beside(at - 1) } else { 0.0 };
        self.diagonal.iter().enumerate().map(row).fold(LEAST_SCALE, f64::max)
    }

    /// The pivots of `shift - T`; all are positive exactly where `shift` is above every eigenvalue.
    fn pivots(&self, shift: f64) -> Option<Vec<f64>> {
        let mut pivots: Vec<f64> = Vec::with_capacity(self.diagonal.len());
        for (at, value) in self.diagonal.iter().enumerate() {
            let above = if at > 0 { self.beside[at - 1].powi(2) / pivots[at - 1] } else { 0.0 };
            pivots.push(Some(shift - value - above).filter(|pivot| *pivot > 0.0)?);
        }
        Some(pivots)
    }

    /// Its largest eigenvalue, by bisection, and the vector, of length 1, by inverse iteration from just above, where
    /// elimination needs no pivoting.
    fn largest(&self) -> (f64, Vec<f64>) {
        let scale = self.scale();
        let mut low = self.diagonal.iter().copied().fold(-scale, f64::max);
        let mut high = scale * (1.0 + 1e-14);
        let mut pivots = self.pivots(high);
        while high - low > 4.0 * f64::EPSILON * scale {
            let middle = f64::midpoint(low, high);
            match self.pivots(middle) {
                Some(found) => (high, pivots) = (middle, Some(found)),
                None => low = middle,
            }
        }
        let pivots = pivots.unwrap_or_else(|| vec![scale; self.diagonal.len()]);
        let mut vector = vec![1.0; pivots.len()];
        for _ in 0..3 {
            for at in 1..vector.len() {
                vector[at] += self.beside[at - 1] / pivots[at - 1] * vector[at - 1];
            }
            for at in (0..vector.len()).rev() {
                let below = if at + 1 < vector.len() { self.beside[at] * vector[at + 1] } else { 0.0 };
                vector[at] = (vector[at] + below) / pivots[at];
            }
            let largest = vector.iter().fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
            self::scale(&mut vector, 1.0 / largest);
            let length = norm(&vector);
            self::scale(&mut vector, 1.0 / length);
        }
        (f64::midpoint(low, high), vector)
    }
}

#[cfg(test)]
mod tests {
    use super::{dot, largest, start};

    /// The path graph's matrix has the eigenvalues 2 cos(k pi / (n + 1)) and sines for vectors.
    fn path(n: usize) -> impl FnMut(&[f64], &mut [f64]) {
        move |x, y| {
            for at in 0..n {
                y[at] = if at > 0 { x[at - 1] } else { 0.0 } + x.get(at + 1).copied().unwrap_or_default();
            }
        }
    }

    #[test]
    fn eigenpairs_of_a_path_are_known() {
        for n in [1_usize, 2, 3, 10, 57] {
            let angle = std::f64::consts::PI / (n as f64 + 1.0);
            let first = largest(&[], start(n), path(n)).unwrap();
            assert!((first.value - 2.0 * angle.cos()).abs() < 1e-9, "{n}: {}", first.value);
            let sign = first.vector[0].signum();
            let length = (2.0 / (n as f64 + 1.0)).sqrt();
            for (at, value) in first.vector.iter().enumerate() {
                let expected = length * ((at as f64 + 1.0) * angle).sin();
                assert!((sign * value - expected).abs() < 1e-6, "{n}: {value} at {at}, not {expected}");
            }
            let second = largest(&[&first.vector], start(n), path(n));
            assert_eq!(second.is_some(), n > 1);
            if let Some(second) = second {
                assert!((second.value - 2.0 * (2.0 * angle).cos()).abs() < 1e-9);
                assert!(dot(&first.vector, &second.vector).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn degenerate_operators_have_an_answer() {
        let nothing = largest(&[], start(5), |_, y| y.fill(0.0)).unwrap();
        assert!(nothing.value.abs() < 1e-90);
        assert!((dot(&nothing.vector, &nothing.vector) - 1.0).abs() < 1e-12);
        let everything = largest(&[], start(5), |x, y| y.copy_from_slice(x)).unwrap();
        assert!((everything.value - 1.0).abs() < 1e-12);
        let negative = largest(&[], start(3), |x, y| (0..3).for_each(|at| y[at] = -(at as f64 + 1.0) * x[at])).unwrap();
        assert!((negative.value + 1.0).abs() < 1e-9, "{}", negative.value);
        assert!(largest(&[], start(5), |_, y| y.fill(f64::NAN)).is_none());
        assert!(largest(&[], vec![0.0; 4], |_, y| y.fill(1.0)).is_none());
        assert!(largest(&[], vec![], |_, _| ()).is_none());
    }
}
