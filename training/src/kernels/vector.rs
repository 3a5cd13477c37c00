//! Scalar functions written so that loops over them vectorise.

#![expect(clippy::inline_always, reason = "only what is inlined gets the vector width of its caller")]

/// e^x within 2 ulp for x in -87..88, clamped outside of it. Cody-Waite reduction and a degree-6 polynomial.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to the nearest integer, which is then found in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p: f32 = 1.987_569_1e-4;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    y * f32::from_bits(exponent)
}

/// Sum of `f(i)` over `0..n`, in sixteen running sums so that it vectorises in one fixed order.
#[inline(always)]
pub(super) fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let whole = n / 16 * 16;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += 16;
    }
    let mut total = 0.0;
    for i in whole..n {
        total += f(i);
    }
    total + lanes.iter().sum::<f32>()
}

/// Largest value of a slice.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "sums of small whole numbers are exact")]
mod tests {
    #[test]
    fn exp_is_exact_to_a_few_ulp() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01;
            let (got, want) = (super::exp(x), f64::from(x).exp());
            assert!((f64::from(got) - want).abs() <= 3e-7 * want, "exp({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn sum_and_max_see_every_element() {
        for n in [0, 1, 15, 16, 17, 100] {
            let v: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(super::sum(n, |i| v[i]), (n * n.saturating_sub(1) / 2) as f32);
            assert_eq!(super::max(&v), v.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}
