//! From the distances of a picture's patches to its score.

/// Share of the patches that make the score.
pub const DEFAULT_TOP: f64 = 0.01;

/// Mean of the largest `share` of `distances`, their number rounded down: AnomalyDINO's `mean_top1p`. The largest alone where that is
/// less than one; 0 without any.
pub fn mean_of_largest(distances: &[f32], share: f64) -> f32 {
    let count = ((distances.len() as f64 * share) as usize).clamp(1, distances.len().max(1));
    let mut distances = distances.to_vec();
    if distances.is_empty() {
        return 0.0;
    }
    let (larger, last, _) = distances.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let sum = larger.iter().map(|&distance| f64::from(distance)).sum::<f64>() + f64::from(*last);
    (sum / count as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT_TOP, mean_of_largest};

    #[test]
    fn a_share_below_one_patch_is_the_largest() {
        let distances: Vec<f32> = (0..250_u16).map(|at| f32::from(at * 7 % 250)).collect();
        let is = |count: usize, share: f64, expected: f32| {
            let found = mean_of_largest(&distances[..count], share);
            assert!((found - expected).abs() < 1e-5, "{count} {share}: {found}");
        };
        let largest = |count: usize, many: usize| {
            let mut sorted = distances[..count].to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted[..many].iter().sum::<f32>() / many as f32
        };
        is(99, DEFAULT_TOP, largest(99, 1));
        is(199, DEFAULT_TOP, largest(199, 1));
        is(200, DEFAULT_TOP, largest(200, 2));
        is(250, 1.0, largest(250, 250));
        assert!(mean_of_largest(&[], 0.5).abs() < 1e-9);
    }
}
