//! The kernels of `cuda/block.cu` on tensors of a GPU: each takes contiguous float32 tensors and gives new ones, outside of any graph.

use std::sync::OnceLock;

use candle_core::cuda::cudarc::driver::{CudaFunction, CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::cuda::{WrapErr, cudarc};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Result, Shape, Storage, Tensor, bail};

/// Threads of a block in element-wise kernels.
const THREADS: u32 = 256;
/// Warps of a block in kernels that give each row a warp.
const WARPS: u32 = 8;
/// Rows that one block sums up at least.
const CHUNK_ROWS: usize = 256;
/// Blocks that share the rows of a column sum at most.
const MAX_CHUNKS: usize = 128;

fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    static PTX: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compile =
        || cudarc::nvrtc::compile_ptx(include_str!("cuda/block.cu")).map(|ptx| ptx.to_src()).map_err(|error| format!("{error:?}"));
    match PTX.get_or_init(compile) {
        Ok(ptx) => Ok(device.get_or_load_custom_func(name, "dino-block", ptx)?.into_cuda_function()),
        Err(error) => bail!("the CUDA kernels of a block do not compile: {error}"),
    }
}

/// The GPU of a tensor.
fn gpu(tensor: &Tensor) -> Result<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Ok(device.clone()),
        _ => bail!("a tensor on a GPU is wanted"),
    }
}

/// Gives `f` the elements of each tensor; all must be contiguous.
macro_rules! with_views {
    ([$($name:ident),+], $body:expr) => {{
        $(
            let tensor = $name.contiguous()?;
            let (storage, layout) = tensor.storage_and_layout();
            let Storage::Cuda(storage) = &*storage else { bail!("a tensor on a GPU is wanted") };
            let elements = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
            let $name: CudaView<'_, f32> = storage.as_cuda_slice::<f32>()?.slice(elements);
        )+
        $body
    }};
}

/// Room for `len` elements that a kernel is about to fill.
fn room(device: &CudaDevice, len: usize) -> Result<CudaSlice<f32>> {
    #[expect(unsafe_code, reason = "memory that a kernel fills is not filled twice")]
    // SAFETY: every caller launches a kernel that writes all elements before any other kernel of the stream reads them.
    unsafe {
        device.alloc::<f32>(len)
    }
}

fn tensor(values: CudaSlice<f32>, device: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(values, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

fn elements(count: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (count.div_ceil(THREADS as usize) as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

fn rows_of_warps(rows: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (rows.div_ceil(WARPS as usize) as u32, 1, 1), block_dim: (32, WARPS, 1), shared_mem_bytes: 0 }
}

/// Launches a kernel with arguments that are views, slices or numbers.
macro_rules! launch {
    ($device:expr, $name:literal, $config:expr, $($arg:expr),+) => {{
        let function = function($device, $name)?;
        let stream = $device.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        $(launch.arg($arg);)+
        #[expect(unsafe_code, reason = "the only way to launch a kernel")]
        // SAFETY: the arguments are those of the kernel of this name, and all buffers have the lengths that it is told.
        unsafe { launch.launch($config) }.w()?;
    }};
}

/// Layer norm of `x` `[rows, dim]`: the output, and mean and 1 / deviation of each row.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    let (rows, dim) = x.dims2()?;
    let device = gpu(x)?;
    let (mut out, mut stats) = (room(&device, rows * dim)?, room(&device, rows * 2)?);
    with_views!([x, weight, bias], {
        let (r, d) = (rows as i32, dim as i32);
        launch!(&device, "layer_norm", rows_of_warps(rows), &x, &weight, &bias, &mut out, &mut stats, &r, &d, &eps);
    });
    Ok((tensor(out, &device, (rows, dim)), tensor(stats, &device, (rows, 2))))
}

/// `base` plus the gradient of a layer norm by its input.
pub(crate) fn layer_norm_input(x: &Tensor, weight: &Tensor, stats: &Tensor, dout: &Tensor, base: &Tensor) -> Result<Tensor> {
    let (rows, dim) = x.dims2()?;
    let device = gpu(x)?;
    let mut out = room(&device, rows * dim)?;
    with_views!([x, weight, stats, dout, base], {
        let (r, d) = (rows as i32, dim as i32);
        launch!(&device, "layer_norm_input", rows_of_warps(rows), &x, &weight, &stats, &dout, &base, &mut out, &r, &d);
    });
    Ok(tensor(out, &device, (rows, dim)))
}

/// How the rows of a column sum are shared: rows of a chunk, chunks, and the launch.
fn columns(rows: usize, cols: usize) -> (usize, usize, LaunchConfig) {
    let chunk = rows.div_ceil(MAX_CHUNKS).max(CHUNK_ROWS);
    let chunks = rows.div_ceil(chunk).max(1);
    let config = LaunchConfig { grid_dim: (cols.div_ceil(32) as u32, chunks as u32, 1), block_dim: (32, 8, 1), shared_mem_bytes: 0 };
    (chunk, chunks, config)
}

/// Sums over the rows of `x` `[rows, columns]`: `[columns]`.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let device = gpu(x)?;
    let (chunk, chunks, config) = columns(rows, cols);
    let mut out = room(&device, chunks * cols)?;
    with_views!([x], {
        let (r, c, chunk) = (rows as i32, cols as i32, chunk as i32);
        launch!(&device, "column_sums", config, &x, &mut out, &r, &c, &chunk);
    });
    if chunks == 1 {
        return Ok(tensor(out, &device, cols));
    }
    column_sums(&tensor(out, &device, (chunks, cols)))
}

/// Gradients of a layer norm by its weight and its bias, `[dim]` each.
pub(crate) fn layer_norm_weights(x: &Tensor, stats: &Tensor, dout: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, dim) = x.dims2()?;
    let device = gpu(x)?;
    let (chunk, chunks, config) = columns(rows, dim);
    let mut out = room(&device, 2 * chunks * dim)?;
    with_views!([x, stats, dout], {
        let (r, d, chunk) = (rows as i32, dim as i32, chunk as i32);
        launch!(&device, "layer_norm_weights", config, &x, &stats, &dout, &mut out, &r, &d, &chunk);
    });
    let sums = tensor(out, &device, (2, chunks, dim));
    Ok((column_sums(&sums.get(0)?)?, column_sums(&sums.get(1)?)?))
}

/// `x + factor of the row * (y + bias)`, all `[rows, columns]`; as a buffer of the device.
pub(crate) fn residual(x: &Tensor, y: &Tensor, bias: &Tensor, factors: Option<&Tensor>) -> Result<CudaSlice<f32>> {
    let (rows, cols) = x.dims2()?;
    let device = gpu(x)?;
    let mut out = room(&device, rows * cols)?;
    let (count, columns) = ((rows * cols) as i64, cols as i32);
    match factors {
        Some(factors) => with_views!([x, y, bias, factors], {
            launch!(&device, "residual", elements(rows * cols), &x, &y, &bias, &factors, &mut out, &count, &columns);
        }),
        None => with_views!([x, y, bias], {
            let null = 0_u64;
            launch!(&device, "residual", elements(rows * cols), &x, &y, &bias, &null, &mut out, &count, &columns);
        }),
    }
    Ok(out)
}

/// A buffer of `[rows, columns]` as a tensor on the device of `like`.
pub(crate) fn rows(values: CudaSlice<f32>, like: &Tensor, shape: (usize, usize)) -> Result<Tensor> {
    Ok(tensor(values, &gpu(like)?, shape))
}

/// Every row of `x` `[rows, columns]` times its factor.
pub(crate) fn scale_rows(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let (rows, cols) = x.dims2()?;
    let device = gpu(x)?;
    let mut out = room(&device, rows * cols)?;
    with_views!([x, factors], {
        let (count, cols) = ((rows * cols) as i64, cols as i32);
        launch!(&device, "scale_rows", elements(count as usize), &x, &factors, &mut out, &count, &cols);
    });
    Ok(tensor(out, &device, (rows, cols)))
}

/// `gelu(y + bias)`.
pub(crate) fn bias_gelu(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (rows, cols) = y.dims2()?;
    let device = gpu(y)?;
    let mut out = room(&device, rows * cols)?;
    with_views!([y, bias], {
        let (count, cols) = ((rows * cols) as i64, cols as i32);
        launch!(&device, "bias_gelu", elements(count as usize), &y, &bias, &mut out, &count, &cols);
    });
    Ok(tensor(out, &device, (rows, cols)))
}

/// The gradient of [`bias_gelu`] by `y`.
pub(crate) fn bias_gelu_input(y: &Tensor, bias: &Tensor, dout: &Tensor) -> Result<Tensor> {
    let (rows, cols) = y.dims2()?;
    let device = gpu(y)?;
    let mut out = room(&device, rows * cols)?;
    with_views!([y, bias, dout], {
        let (count, cols) = ((rows * cols) as i64, cols as i32);
        launch!(&device, "bias_gelu_input", elements(count as usize), &y, &bias, &dout, &mut out, &count, &cols);
    });
    Ok(tensor(out, &device, (rows, cols)))
}

/// `n` sequences of `tokens` rows `[n * tokens, parts * heads * width]` (plus `bias`) to `[parts, n, heads, tokens, width]`.
pub(crate) fn split_heads(
    rows: &Tensor,
    bias: Option<&Tensor>,
    (n, tokens): (usize, usize),
    (parts, heads, width): (usize, usize, usize),
) -> Result<Tensor> {
    let device = gpu(rows)?;
    let count = n * tokens * parts * heads * width;
    let mut out = room(&device, count)?;
    let [s, t, p, h, w] = [n, tokens, parts, heads, width].map(|size| size as i32);
    match bias {
        Some(bias) => with_views!([rows, bias], {
            launch!(&device, "split_heads", elements(count), &rows, &bias, &mut out, &s, &t, &p, &h, &w);
        }),
        None => with_views!([rows], {
            let null = 0_u64;
            launch!(&device, "split_heads", elements(count), &rows, &null, &mut out, &s, &t, &p, &h, &w);
        }),
    }
    Ok(tensor(out, &device, (parts, n, heads, tokens, width)))
}

/// Rows that are filled one part of one run of sequences at a time.
pub(crate) struct Merged {
    values: CudaSlice<f32>,
    device: CudaDevice,
    rows: usize,
    cols: usize,
}

impl Merged {
    /// Room for `[rows, columns]` beside `like`.
    pub(crate) fn new(like: &Tensor, rows: usize, cols: usize) -> Result<Self> {
        let device = gpu(like)?;
        Ok(Self { values: room(&device, rows * cols)?, device, rows, cols })
    }

    /// Writes `[n, heads, tokens, width]` into the rows from `row`, columns from `first`.
    pub(crate) fn put(&mut self, part: &Tensor, row: usize, first: usize) -> Result<()> {
        let (n, heads, tokens, width) = part.dims4()?;
        let Self { values, device, cols, .. } = self;
        let mut values = values.slice_mut(row * *cols..(row + n * tokens) * *cols);
        with_views!([part], {
            let [s, t, h, w, c, f] = [n, tokens, heads, width, *cols, first].map(|size| size as i32);
            launch!(device, "merge_heads", elements(n * tokens * heads * width), &part, &mut values, &s, &t, &h, &w, &c, &f);
        });
        Ok(())
    }

    /// What was written: every row and column must have been.
    pub(crate) fn into_tensor(self) -> Tensor {
        tensor(self.values, &self.device, (self.rows, self.cols))
    }
}

/// `softmax(scale * scores)` over the last axis.
pub(crate) fn softmax(scores: &Tensor, scale: f32) -> Result<Tensor> {
    let cols = scores.dim(candle_core::D::Minus1)?;
    let rows = scores.elem_count() / cols;
    let (device, shape) = (gpu(scores)?, scores.shape().clone());
    let mut out = room(&device, rows * cols)?;
    with_views!([scores], {
        let (r, c) = (rows as i32, cols as i32);
        launch!(&device, "softmax", rows_of_warps(rows), &scores, &mut out, &r, &c, &scale);
    });
    Ok(tensor(out, &device, shape))
}

/// The gradient of [`softmax`] by the scores, from its output.
pub(crate) fn softmax_input(weights: &Tensor, dout: &Tensor, scale: f32) -> Result<Tensor> {
    let cols = weights.dim(candle_core::D::Minus1)?;
    let rows = weights.elem_count() / cols;
    let (device, shape) = (gpu(weights)?, weights.shape().clone());
    let mut out = room(&device, rows * cols)?;
    with_views!([weights, dout], {
        let (r, c) = (rows as i32, cols as i32);
        launch!(&device, "softmax_input", rows_of_warps(rows), &weights, &dout, &mut out, &r, &c, &scale);
    });
    Ok(tensor(out, &device, shape))
}
