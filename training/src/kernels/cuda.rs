//! The kernels of `cuda/block.cu` on tensors of a GPU: each takes float32 tensors and gives new ones, outside of any graph. In tests the CPU
//! stands in a GPU's place (`cuda/emulated.rs`).

#[cfg(not(test))]
mod device;
#[cfg(test)]
#[path = "cuda/emulated.rs"]
mod device;
mod launch;

use candle_core::{D, Result, Tensor, bail};

use self::device::Gpu;
pub(crate) use self::device::{Buffer, Stored};
use self::launch::Argument::{Float, In, Maybe, Out, Part};
use self::launch::{Argument, Grid, int, long};

/// What NVRTC compiles.
const SOURCE: &str = include_str!("cuda/block.cu");
/// Rows that one block sums up at least.
const CHUNK_ROWS: usize = 256;
/// Blocks that share the rows of a column sum at most.
const MAX_CHUNKS: usize = 128;

/// Kernels read as far as they are told: as many elements have to be there.
fn lengths(of: &[(&Tensor, usize)]) -> Result<()> {
    for (tensor, len) in of {
        if tensor.elem_count() != *len {
            bail!("a kernel wants {len} elements, and is given {:?}", tensor.dims());
        }
    }
    Ok(())
}

/// Layer norm of `x` `[rows, dim]`: the output, and mean and 1 / deviation of each row.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let ((rows, dim), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(weight, dim), (bias, dim)])?;
    let (mut out, mut stats) = (gpu.room(rows * dim)?, gpu.room(rows * 2)?);
    let arguments = &mut [In(x), In(weight), In(bias), Out(&mut out), Out(&mut stats), int(rows)?, int(dim)?, Float(eps)];
    gpu.launch("layer_norm", Grid::rows(rows), arguments)?;
    Ok((gpu.tensor(out, (rows, dim)), gpu.tensor(stats, (rows, 2))))
}

/// `base` plus the gradient of a layer norm by its input.
pub(crate) fn layer_norm_input(x: &Tensor, weight: &Tensor, stats: &Tensor, dout: &Tensor, base: &Tensor) -> Result<Tensor> {
    let ((rows, dim), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(weight, dim), (stats, 2 * rows), (dout, rows * dim), (base, rows * dim)])?;
    let mut out = gpu.room(rows * dim)?;
    let arguments = &mut [In(x), In(weight), In(stats), In(dout), In(base), Out(&mut out), int(rows)?, int(dim)?];
    gpu.launch("layer_norm_input", Grid::rows(rows), arguments)?;
    Ok(gpu.tensor(out, (rows, dim)))
}

/// How the rows of a column sum are shared: rows of a chunk, and chunks.
fn chunks(rows: usize) -> (usize, usize) {
    let chunk = rows.div_ceil(MAX_CHUNKS).max(CHUNK_ROWS);
    (chunk, rows.div_ceil(chunk).max(1))
}

/// Sums over the rows of `x` `[rows, columns]`: `[columns]`.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let ((rows, cols), gpu) = (x.dims2()?, Gpu::of(x)?);
    let (chunk, chunks) = chunks(rows);
    let mut out = gpu.room(chunks * cols)?;
    let arguments = &mut [In(x), Out(&mut out), int(rows)?, int(cols)?, int(chunk)?];
    gpu.launch("column_sums", Grid::columns(cols, chunks), arguments)?;
    if chunks == 1 {
        return Ok(gpu.tensor(out, cols));
    }
    column_sums(&gpu.tensor(out, (chunks, cols)))
}

/// Gradients of a layer norm by its weight and its bias, `[dim]` each.
pub(crate) fn layer_norm_weights(x: &Tensor, stats: &Tensor, dout: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((rows, dim), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(stats, 2 * rows), (dout, rows * dim)])?;
    let (chunk, chunks) = chunks(rows);
    let mut out = gpu.room(2 * chunks * dim)?;
    let arguments = &mut [In(x), In(stats), In(dout), Out(&mut out), int(rows)?, int(dim)?, int(chunk)?];
    gpu.launch("layer_norm_weights", Grid::columns(dim, chunks), arguments)?;
    let sums = gpu.tensor(out, (2, chunks, dim));
    Ok((column_sums(&sums.get(0)?)?, column_sums(&sums.get(1)?)?))
}

/// `x + factor of the row * (y + bias)`, all `[rows, columns]`; as a buffer of the device.
pub(crate) fn residual(x: &Tensor, y: &Tensor, bias: &Tensor, factors: Option<&Tensor>) -> Result<Buffer> {
    let ((rows, cols), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(y, rows * cols), (bias, cols)])?;
    lengths(factors.map(|factors| (factors, rows)).as_slice())?;
    let (mut out, count) = (gpu.room(rows * cols)?, rows * cols);
    let arguments = &mut [In(x), In(y), In(bias), Maybe(factors), Out(&mut out), long(count), int(cols)?];
    gpu.launch("residual", Grid::elements(count), arguments)?;
    Ok(out)
}

/// A buffer of `[rows, columns]` as a tensor on the device of `like`.
pub(crate) fn rows(values: Buffer, like: &Tensor, shape: (usize, usize)) -> Result<Tensor> {
    Ok(Gpu::of(like)?.tensor(values, shape))
}

/// A buffer as what candle takes from an operator, on the device of `like`.
pub(crate) fn stored(values: Buffer, like: &Tensor) -> Result<Stored> {
    Ok(Gpu::of(like)?.stored(values))
}

/// Every row of `x` `[rows, columns]` times its factor.
pub(crate) fn scale_rows(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let ((rows, cols), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(factors, rows)])?;
    let (mut out, count) = (gpu.room(rows * cols)?, rows * cols);
    gpu.launch("scale_rows", Grid::elements(count), &mut [In(x), In(factors), Out(&mut out), long(count), int(cols)?])?;
    Ok(gpu.tensor(out, (rows, cols)))
}

/// `gelu(y + bias)`.
pub(crate) fn bias_gelu(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ((rows, cols), gpu) = (y.dims2()?, Gpu::of(y)?);
    lengths(&[(bias, cols)])?;
    let (mut out, count) = (gpu.room(rows * cols)?, rows * cols);
    gpu.launch("bias_gelu", Grid::elements(count), &mut [In(y), In(bias), Out(&mut out), long(count), int(cols)?])?;
    Ok(gpu.tensor(out, (rows, cols)))
}

/// The gradient of [`bias_gelu`] by `y`.
pub(crate) fn bias_gelu_input(y: &Tensor, bias: &Tensor, dout: &Tensor) -> Result<Tensor> {
    let ((rows, cols), gpu) = (y.dims2()?, Gpu::of(y)?);
    lengths(&[(bias, cols), (dout, rows * cols)])?;
    let (mut out, count) = (gpu.room(rows * cols)?, rows * cols);
    let arguments = &mut [In(y), In(bias), In(dout), Out(&mut out), long(count), int(cols)?];
    gpu.launch("bias_gelu_input", Grid::elements(count), arguments)?;
    Ok(gpu.tensor(out, (rows, cols)))
}

/// `silu(gate + bias) * (value + bias)` of rows `[gate, value]`.
pub(crate) fn bias_swiglu(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let ((rows, wide), gpu) = (y.dims2()?, Gpu::of(y)?);
    lengths(&[(bias, wide)])?;
    let (cols, count) = (wide / 2, rows * (wide / 2));
    let mut out = gpu.room(count)?;
    gpu.launch("bias_swiglu", Grid::elements(count), &mut [In(y), In(bias), Out(&mut out), long(count), int(cols)?])?;
    Ok(gpu.tensor(out, (rows, cols)))
}

/// The gradient of [`bias_swiglu`] by `y`.
pub(crate) fn bias_swiglu_input(y: &Tensor, bias: &Tensor, dout: &Tensor) -> Result<Tensor> {
    let ((rows, cols), gpu) = (dout.dims2()?, Gpu::of(y)?);
    lengths(&[(y, rows * 2 * cols), (bias, 2 * cols)])?;
    let (mut out, count) = (gpu.room(rows * 2 * cols)?, rows * cols);
    let arguments = &mut [In(y), In(bias), In(dout), Out(&mut out), long(count), int(cols)?];
    gpu.launch("bias_swiglu_input", Grid::elements(count), arguments)?;
    Ok(gpu.tensor(out, (rows, 2 * cols)))
}

/// Rotary positions of the sequences of one run.
pub(crate) struct Angles {
    /// Cosines, then sines, of each row and then each column of patches: `[2, rows + columns, width / 4]`.
    pub(crate) table: Tensor,
    /// Tokens ahead of the patches.
    pub(crate) prefix: usize,
    /// Patches of a row.
    pub(crate) columns: usize,
}

/// The arguments of a kernel that turns heads where there are angles: these, and what says which of them are a token's.
fn angles(of: Option<&Angles>) -> Result<(Argument<'_>, [Argument<'static>; 2])> {
    let (prefix, columns) = of.map_or((0, 0), |angles| (angles.prefix, angles.columns));
    Ok((Maybe(of.map(|angles| &angles.table)), [int(prefix)?, int(columns)?]))
}

/// `n` sequences of `tokens` rows `[n * tokens, parts * heads * width]` (plus `bias`) to `[parts, n, heads, tokens, width]`, the first two parts
/// turned.
pub(crate) fn split_heads(
    rows: &Tensor,
    bias: Option<&Tensor>,
    turn: Option<&Angles>,
    (n, tokens): (usize, usize),
    (parts, heads, width): (usize, usize, usize),
) -> Result<Tensor> {
    let gpu = Gpu::of(rows)?;
    let count = n * tokens * parts * heads * width;
    lengths(&[(rows, count)])?;
    lengths(bias.map(|bias| (bias, parts * heads * width)).as_slice())?;
    let mut out = gpu.room(count)?;
    let (angles, places) = angles(turn)?;
    let sizes = [int(n)?, int(tokens)?, int(parts)?, int(heads)?, int(width)?];
    let arguments = [In(rows), Maybe(bias), angles, Out(&mut out)].into_iter().chain(sizes).chain(places);
    gpu.launch("split_heads", Grid::elements(count), &mut arguments.collect::<Vec<_>>())?;
    Ok(gpu.tensor(out, (parts, n, heads, tokens, width)))
}

/// Rows that are filled one part of one run of sequences at a time.
pub(crate) struct Merged {
    values: Buffer,
    gpu: Gpu,
    rows: usize,
    cols: usize,
}

impl Merged {
    /// Room for `[rows, columns]` beside `like`.
    pub(crate) fn new(like: &Tensor, rows: usize, cols: usize) -> Result<Self> {
        let gpu = Gpu::of(like)?;
        Ok(Self { values: gpu.room(rows * cols)?, gpu, rows, cols })
    }

    /// Writes `[n, heads, tokens, width]`, turned back, into the rows from `row`, columns from `first`.
    pub(crate) fn put(&mut self, part: &Tensor, turn: Option<&Angles>, row: usize, first: usize) -> Result<()> {
        let (n, heads, tokens, width) = part.dims4()?;
        let Self { values, gpu, cols, .. } = self;
        let to = Part(values, row * *cols..(row + n * tokens) * *cols);
        let (angles, places) = angles(turn)?;
        let sizes = [int(n)?, int(tokens)?, int(heads)?, int(width)?, int(*cols)?, int(first)?];
        let arguments = [In(part), angles, to].into_iter().chain(sizes).chain(places);
        gpu.launch("merge_heads", Grid::elements(n * tokens * heads * width), &mut arguments.collect::<Vec<_>>())
    }

    /// What was written: every row and column must have been.
    pub(crate) fn into_tensor(self) -> Tensor {
        self.gpu.tensor(self.values, (self.rows, self.cols))
    }
}

/// `softmax(scale * scores)` over the last axis.
pub(crate) fn softmax(scores: &Tensor, scale: f32) -> Result<Tensor> {
    let (cols, gpu) = (scores.dim(D::Minus1)?, Gpu::of(scores)?);
    let rows = scores.elem_count() / cols;
    let mut out = gpu.room(rows * cols)?;
    gpu.launch("softmax", Grid::rows(rows), &mut [In(scores), Out(&mut out), int(rows)?, int(cols)?, Float(scale)])?;
    Ok(gpu.tensor(out, scores.shape().clone()))
}

/// The gradient of [`softmax`] by the scores, from its output.
pub(crate) fn softmax_input(weights: &Tensor, dout: &Tensor, scale: f32) -> Result<Tensor> {
    let (cols, gpu) = (weights.dim(D::Minus1)?, Gpu::of(weights)?);
    let rows = weights.elem_count() / cols;
    lengths(&[(dout, rows * cols)])?;
    let mut out = gpu.room(rows * cols)?;
    let arguments = &mut [In(weights), In(dout), Out(&mut out), int(rows)?, int(cols)?, Float(scale)];
    gpu.launch("softmax_input", Grid::rows(rows), arguments)?;
    Ok(gpu.tensor(out, weights.shape().clone()))
}

/// Each row of `x` `[rows, columns]` divided by its norm, which counts as at least `floor`, times its factor in `[rows, 1]`; as a buffer of the
/// device.
pub(crate) fn unit_rows(x: &Tensor, factors: &Tensor, floor: f32) -> Result<Buffer> {
    let ((rows, cols), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(factors, rows)])?;
    let mut out = gpu.room(rows * cols)?;
    let arguments = &mut [In(x), In(factors), Out(&mut out), int(rows)?, int(cols)?, Float(floor)];
    gpu.launch("unit_rows", Grid::rows(rows), arguments)?;
    Ok(out)
}

/// The gradients of [`unit_rows`] by `x` and by the factors.
pub(crate) fn unit_rows_input(x: &Tensor, factors: &Tensor, dout: &Tensor, floor: f32) -> Result<(Tensor, Tensor)> {
    let ((rows, cols), gpu) = (x.dims2()?, Gpu::of(x)?);
    lengths(&[(factors, rows), (dout, rows * cols)])?;
    let (mut dx, mut dfactors) = (gpu.room(rows * cols)?, gpu.room(rows)?);
    let arguments = &mut [In(x), In(factors), In(dout), Out(&mut dx), Out(&mut dfactors), int(rows)?, int(cols)?, Float(floor)];
    gpu.launch("unit_rows_input", Grid::rows(rows), arguments)?;
    Ok((gpu.tensor(dx, (rows, cols)), gpu.tensor(dfactors, (rows, 1))))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(shape: &[usize], seed: usize) -> Tensor {
        let values = (0..shape.iter().product()).map(|i: usize| ((i * 7919 + seed * 104_729) % 1000) as f32 / 250.0 - 2.0);
        Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
    }

    fn assert_close(got: &Tensor, want: &Tensor, what: &str) {
        assert_eq!(got.dims(), want.dims(), "{what}");
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, (got, want)) in flat(got).iter().zip(flat(want)).enumerate() {
            assert!((got - want).abs() <= 1e-4 + 1e-4 * want.abs(), "{what}, element {i}: {got}, not {want}");
        }
    }

    #[test]
    fn columns_are_summed_up_in_chunks() {
        // One chunk, several, and as many as there are at most.
        for (rows, cols) in [(1, 1), (7, 33), (256, 5), (700, 40), (40_000, 3)] {
            let x = values(&[rows, cols], rows);
            assert_close(&column_sums(&x).unwrap(), &x.sum(0).unwrap(), &format!("{rows} rows"));
        }
    }

    #[test]
    fn layer_norm_keeps_mean_and_scale_of_each_row() {
        let (x, weight, bias) = (values(&[9, 37], 1), values(&[37], 2), values(&[37], 3));
        let (out, stats) = layer_norm(&x, &weight, &bias, 1e-3).unwrap();
        let mean = x.mean_keepdim(1).unwrap();
        let scale = (x.var_keepdim(1).unwrap() * (36.0 / 37.0)).unwrap();
        let scale = (scale + 1e-3).unwrap().sqrt().unwrap().recip().unwrap();
        assert_close(&stats, &Tensor::cat(&[&mean, &scale], 1).unwrap(), "statistics");
        let normed = x.broadcast_sub(&mean).unwrap().broadcast_mul(&scale).unwrap();
        assert_close(&out, &normed.broadcast_mul(&weight).unwrap().broadcast_add(&bias).unwrap(), "output");
    }

    #[test]
    fn softmax_stays_finite_for_large_scores() {
        for cols in [1, 31, 32, 70] {
            let scores = (values(&[2, 3, cols], 4) * 100.0).unwrap();
            let scaled = (&scores * 0.5).unwrap();
            let exp = scaled.broadcast_sub(&scaled.max_keepdim(2).unwrap()).unwrap().exp().unwrap();
            let want = exp.broadcast_div(&exp.sum_keepdim(2).unwrap()).unwrap();
            assert_close(&softmax(&scores, 0.5).unwrap(), &want, "softmax");
        }
    }

    #[test]
    fn heads_are_split_and_merged_again() {
        let (rows, bias) = (values(&[10, 24], 5), values(&[24], 6));
        let split = split_heads(&rows, Some(&bias), None, (2, 5), (3, 2, 4)).unwrap();
        let with_bias = rows.broadcast_add(&bias).unwrap();
        let want = with_bias.reshape((2, 5, 3, 2, 4)).unwrap().permute((2, 0, 3, 1, 4)).unwrap();
        assert_close(&split, &want, "split");
        let mut merged = Merged::new(&rows, 10, 24).unwrap();
        for part in 0..3 {
            merged.put(&split.get(part).unwrap(), None, 0, part * 8).unwrap();
        }
        assert_close(&merged.into_tensor(), &with_bias, "merged");
    }

    #[test]
    fn heads_of_patches_are_turned_and_turned_back() {
        // CLS and 2 x 2 patches; heads of four channels: an angle for each row and each column.
        let (rows, lines) = (values(&[10, 24], 5), values(&[4, 1], 6));
        let (cos, sin) = (lines.cos().unwrap(), lines.sin().unwrap());
        let turn = Angles { table: Tensor::stack(&[&cos, &sin], 0).unwrap(), prefix: 1, columns: 2 };
        let of_patches = |lines: &Tensor| {
            let of = |patches: [u32; 4]| lines.index_select(&Tensor::new(&patches, &Device::Cpu).unwrap(), 0).unwrap();
            Tensor::cat(&[of([0, 0, 1, 1]), of([2, 3, 2, 3])], 1).unwrap()
        };
        let (cos, sin) = (of_patches(&cos), of_patches(&sin));
        let plain = split_heads(&rows, None, None, (2, 5), (3, 2, 4)).unwrap();
        let split = split_heads(&rows, None, Some(&turn), (2, 5), (3, 2, 4)).unwrap();
        let patches = |x: &Tensor, from: usize| x.narrow(2, 1, 4).unwrap().narrow(3, from, 2).unwrap();
        for part in 0..3 {
            let (plain, split) = (plain.get(part).unwrap(), split.get(part).unwrap());
            let (a, b) = (patches(&plain, 0), patches(&plain, 2));
            let mul = |x: &Tensor, by: &Tensor| x.broadcast_mul(by).unwrap();
            let turned = [(mul(&a, &cos) - mul(&b, &sin)).unwrap(), (mul(&b, &cos) + mul(&a, &sin)).unwrap()];
            let want = Tensor::cat(&[plain.narrow(2, 0, 1).unwrap(), Tensor::cat(&turned, 3).unwrap()], 2).unwrap();
            assert_close(&split, if part < 2 { &want } else { &plain }, "split");
        }
        let mut merged = Merged::new(&rows, 10, 24).unwrap();
        for part in 0..3 {
            merged.put(&split.get(part).unwrap(), (part < 2).then_some(&turn), 0, part * 8).unwrap();
        }
        assert_close(&merged.into_tensor(), &rows, "merged");
    }

    /// A gate that is far from zero gives no infinity.
    #[test]
    fn gates_and_their_gradients_stay_finite() {
        let y = Tensor::new(&[[-200.0_f32, 200.0, 1.0, 3.0, 3.0, -2.0]], &Device::Cpu).unwrap();
        let bias = Tensor::new(&[0.0_f32, 0.0, -0.5, 0.0, 0.0, 1.0], &Device::Cpu).unwrap();
        let silu = 0.5 / (1.0 + (-0.5_f32).exp());
        assert_close(&bias_swiglu(&y, &bias).unwrap(), &Tensor::new(&[[0.0, 600.0, -silu]], &Device::Cpu).unwrap(), "output");
        let share = silu / 0.5;
        let slope = share + silu * (1.0 - share);
        let want = Tensor::new(&[[0.0, 3.0, -slope, 0.0, 200.0, silu]], &Device::Cpu).unwrap();
        assert_close(
            &bias_swiglu_input(&y, &bias, &Tensor::ones((1, 3), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap(),
            &want,
            "slope",
        );
    }

    #[test]
    fn arguments_of_other_lengths_are_refused() {
        let (x, short) = (values(&[4, 6], 1), values(&[5], 2));
        let error = bias_gelu(&x, &short).unwrap_err().to_string();
        assert!(error.contains("wants 6 elements") && error.contains("[5]"), "{error}");
        assert!(layer_norm(&x, &short, &short, 1e-6).is_err() && residual(&x, &x, &values(&[6], 3), Some(&short)).is_err());
        assert_eq!(bias_gelu(&values(&[0, 5], 1), &short).unwrap().dims(), [0, 5], "nothing to do is no launch");
    }

    /// Elements of a tensor that is not contiguous, or begins within another, are the right ones.
    #[test]
    fn views_of_tensors_are_read_row_by_row() {
        let x = values(&[6, 8], 7);
        assert_close(&column_sums(&x.t().unwrap()).unwrap(), &x.sum(1).unwrap(), "transposed");
        let part = x.narrow(0, 2, 3).unwrap();
        assert_close(&column_sums(&part).unwrap(), &part.sum(0).unwrap(), "part");
    }
}
