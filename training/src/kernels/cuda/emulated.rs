//! The CPU in place of a GPU, for tests: kernels compiled by the C++ compiler and run by `emulator.h`, in launches as those of a GPU.
//!
//! What a GPU would do without a word is an error here: arguments of another type, a write beyond a buffer, a barrier or a shuffle that not
//! all threads reach. What no kernel has written, and what lies beyond a buffer, is not a number.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::process::Command;
use std::sync::OnceLock;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Result, Shape, Storage, Tensor, bail};

use super::launch::{Argument, Grid};

/// Memory that kernels fill.
pub(crate) type Buffer = Vec<f32>;

/// What candle keeps of a tensor there.
pub(crate) type Stored = CpuStorage;

/// Elements ahead of and behind those that a kernel is given.
const MARGIN: usize = 1024;

/// Not a number, with bits that no kernel computes.
const BEYOND: f32 = f32::from_bits(0x7fc0_dead);

/// The CPU as a GPU.
pub(super) struct Gpu;

impl Gpu {
    pub(super) fn of(tensor: &Tensor) -> Result<Self> {
        if tensor.device().is_cpu() { Ok(Self) } else { bail!("a tensor on the CPU is wanted") }
    }

    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as that of a GPU")]
    pub(super) fn room(&self, len: usize) -> Result<Buffer> {
        Ok(vec![BEYOND; len])
    }

    #[expect(clippy::unused_self, reason = "as that of a GPU")]
    pub(super) fn stored(&self, values: Buffer) -> Stored {
        CpuStorage::F32(values)
    }

    pub(super) fn tensor(&self, values: Buffer, shape: impl Into<Shape>) -> Tensor {
        Tensor::from_storage(Storage::Cpu(self.stored(values)), shape, BackpropOp::none(), false)
    }

    #[expect(clippy::unused_self, reason = "as that of a GPU")]
    pub(super) fn launch(&self, name: &str, grid: Grid, arguments: &mut [Argument<'_>]) -> Result<()> {
        static PROGRAM: OnceLock<std::result::Result<Program, String>> = OnceLock::new();
        if grid.is_empty() {
            return Ok(());
        }
        match PROGRAM.get_or_init(|| Program::compile(super::SOURCE)) {
            Ok(program) => program.launch(name, grid, arguments),
            Err(error) => bail!("{error}"),
        }
    }
}

/// Kernels that are ready to run.
struct Program(libloading::Library);

/// `emulate_NAME` of `emulator.h`: blocks, threads, kinds of the arguments, and pointers to them; null or what is wrong.
type Entry = unsafe extern "C" fn(*const u32, *const u32, *const c_char, *mut *mut c_void) -> *const c_char;

impl Program {
    fn compile(source: &str) -> std::result::Result<Self, String> {
        let names = source.split("__global__ void ").skip(1).filter_map(|rest| rest.split('(').next());
        let entries: BTreeSet<String> = names.map(|name| format!("KERNEL({name})\n")).collect();
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (text, library) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        let entries: String = entries.into_iter().collect();
        let all = [include_str!("emulator.h"), "#line 1 \"kernels.cu\"\n", source, &entries].concat();
        fs_err::write(&text, all).map_err(|error| error.to_string())?;
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        // Jumps between stacks are taken for mistakes with _FORTIFY_SOURCE.
        let options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-w", "-o"];
        let output = Command::new(&compiler).args(options).arg(&library).arg(&text).output();
        let output = output.map_err(|error| format!("{compiler}: {error}; tests of the CUDA kernels need a C++ compiler, such as g++"))?;
        if !output.status.success() {
            return Err(format!("{compiler} does not compile the CUDA kernels: {}", String::from_utf8_lossy(&output.stderr)));
        }
        #[expect(unsafe_code, reason = "a library is loaded")]
        // SAFETY: it was compiled just now, and does nothing when it is loaded.
        unsafe { libloading::Library::new(&library) }.map(Self).map_err(|error| error.to_string())
    }

    fn launch(&self, name: &str, grid: Grid, arguments: &mut [Argument<'_>]) -> Result<()> {
        let mut ready = arguments.iter().map(Ready::new).collect::<Result<Vec<_>>>()?;
        let kinds: Vec<u8> = arguments.iter().map(kind).collect();
        let kinds = CString::new(kinds).map_err(candle_core::Error::wrap)?;
        let mut pointers: Vec<*mut c_void> = ready.iter_mut().map(Ready::pointer).collect();
        #[expect(unsafe_code, reason = "code of another language is called")]
        // SAFETY: the entry of this kernel is that of `emulator.h`, which compares the kinds of the arguments with those of the kernel; the
        // pointers live until it returns, and so does what it says is wrong until the next launch of this thread.
        let wrong = unsafe {
            let entry = self.0.get::<Entry>(format!("emulate_{name}")).map_err(candle_core::Error::wrap)?;
            let wrong = entry(grid.blocks.as_ptr(), grid.threads.as_ptr(), kinds.as_ptr(), pointers.as_mut_ptr());
            if wrong.is_null() { None } else { Some(CStr::from_ptr(wrong).to_string_lossy().into_owned()) }
        };
        if let Some(wrong) = wrong {
            bail!("kernel {name}: {wrong}");
        }
        for (at, (argument, ready)) in arguments.iter_mut().zip(&ready).enumerate() {
            if let Ready::Memory(memory, _) = ready {
                let (head, rest) = memory.split_at(MARGIN);
                let (values, tail) = rest.split_at(rest.len() - MARGIN);
                if head.iter().chain(tail).any(|value| value.to_bits() != BEYOND.to_bits()) {
                    bail!("kernel {name} writes beyond its argument {at}");
                }
                match argument {
                    Argument::Out(buffer) => buffer.copy_from_slice(values),
                    Argument::Part(buffer, part) => buffer[part.clone()].copy_from_slice(values),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The letter of an argument in `emulator.h`.
fn kind(argument: &Argument<'_>) -> u8 {
    match argument {
        Argument::In(_) | Argument::Maybe(_) => b'r',
        Argument::Out(_) | Argument::Part(..) => b'w',
        Argument::Int(_) => b'i',
        Argument::Long(_) => b'l',
        Argument::Float(_) => b'f',
    }
}

/// An argument as a kernel takes it.
enum Ready {
    /// A copy between margins, and the pointer to it.
    Memory(Vec<f32>, *mut f32),
    Null(*mut f32),
    Int(i32),
    Long(i64),
    Float(f32),
}

impl Ready {
    fn new(argument: &Argument<'_>) -> Result<Self> {
        let margin = [BEYOND; MARGIN];
        let between = |values: &[f32]| {
            let mut memory = [&margin[..], values, &margin[..]].concat();
            let first = memory[MARGIN..].as_mut_ptr();
            Self::Memory(memory, first)
        };
        match argument {
            Argument::In(_) | Argument::Maybe(Some(_)) => {
                let Some(tensor) = argument.read()? else { bail!("a tensor is wanted") };
                let (storage, layout) = tensor.storage_and_layout();
                let Storage::Cpu(storage) = &*storage else { bail!("a tensor on the CPU is wanted") };
                Ok(between(&storage.as_slice()?[layout.start_offset()..][..layout.shape().elem_count()]))
            }
            Argument::Maybe(None) => Ok(Self::Null(std::ptr::null_mut())),
            Argument::Out(buffer) => Ok(between(buffer)),
            Argument::Part(buffer, part) => Ok(between(&buffer[part.clone()])),
            Argument::Int(number) => Ok(Self::Int(*number)),
            Argument::Long(number) => Ok(Self::Long(*number)),
            Argument::Float(number) => Ok(Self::Float(*number)),
        }
    }

    fn pointer(&mut self) -> *mut c_void {
        match self {
            Self::Memory(_, pointer) | Self::Null(pointer) => std::ptr::from_mut(pointer).cast(),
            Self::Int(number) => std::ptr::from_mut(number).cast(),
            Self::Long(number) => std::ptr::from_mut(number).cast(),
            Self::Float(number) => std::ptr::from_mut(number).cast(),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::cuda::launch::{int, long};

    const KERNELS: &str = r#"
extern "C" __global__ void reversed(const float *x, float *out, int count) {
    __shared__ float parts[64];
    parts[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = parts[63 - threadIdx.x];
}
extern "C" __global__ void reversed_without_barrier(const float *x, float *out, int count) {
    __shared__ float parts[64];
    parts[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    out[blockIdx.x * 64 + threadIdx.x] = parts[63 - threadIdx.x];
    __syncthreads();
}
extern "C" __global__ void swapped(const float *x, float *out, int count) {
    int i = blockIdx.x * 64 + threadIdx.x;
    out[i] = __shfl_xor_sync(0xffffffffu, x[i], 1);
}
extern "C" __global__ void shuffles_in_one_half(const float *x, float *out, int count) {
    int i = blockIdx.x * 64 + threadIdx.x;
    if (i % 32 < count) out[i] = __shfl_xor_sync(0xffffffffu, x[i], 1);
}
extern "C" __global__ void waits_in_one_half(const float *x, float *out, int count) {
    if (threadIdx.x < count) __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = x[0];
}
extern "C" __global__ void writes_behind(const float *x, float *out, int count) {
    out[blockIdx.x * 64 + threadIdx.x + count] = x[0];
}
"#;

    fn run(program: &Program, name: &str, count: usize) -> Result<Vec<f32>> {
        let x = Tensor::arange(0.0_f32, 128.0, &Device::Cpu)?;
        let mut out = Gpu::of(&x)?.room(128)?;
        let grid = Grid { blocks: [2, 1], threads: [64, 1] };
        program.launch(name, grid, &mut [Argument::In(&x), Argument::Out(&mut out), int(count)?])?;
        Ok(out)
    }

    #[test]
    fn threads_wait_for_each_other() {
        let program = Program::compile(KERNELS).unwrap();
        let of = |at: fn(usize) -> usize| (0..128).map(|i| at(i) as f32).collect::<Vec<_>>();
        assert_eq!(run(&program, "reversed", 0).unwrap(), of(|i| i / 64 * 64 + 63 - i % 64));
        assert_eq!(run(&program, "swapped", 0).unwrap(), of(|i| i ^ 1));
        assert_ne!(run(&program, "reversed_without_barrier", 0).unwrap(), of(|i| i / 64 * 64 + 63 - i % 64), "a race");
    }

    #[test]
    fn what_a_gpu_would_do_without_a_word_is_an_error() {
        let program = Program::compile(KERNELS).unwrap();
        for (name, count, wanted) in [
            ("shuffles_in_one_half", 16, "a shuffle that not all threads of the warp reach"),
            ("waits_in_one_half", 32, "a barrier that not all threads of the block reach"),
            ("writes_behind", 1, "writes beyond its argument 1"),
        ] {
            let error = run(&program, name, count).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(wanted), "{error}");
            // The next launch is as if nothing had been.
            assert_eq!(run(&program, "swapped", 0).unwrap()[..3], [1.0, 0.0, 3.0]);
        }
        let x = Tensor::arange(0.0_f32, 64.0, &Device::Cpu).unwrap();
        let mut out = vec![0.0; 64];
        let grid = Grid { blocks: [1, 1], threads: [64, 1] };
        let error = program.launch("swapped", grid, &mut [Argument::In(&x), Argument::Out(&mut out), long(0)]).unwrap_err().to_string();
        assert!(error.contains("arguments rwl are given, rwi wanted"), "{error}");
        let threads = Grid { blocks: [1, 1], threads: [16, 1] };
        let error = program.launch("swapped", threads, &mut [Argument::In(&x), Argument::Out(&mut out), int(0).unwrap()]).unwrap_err();
        assert!(error.to_string().contains("fewer than 32 threads"), "{error}");
        let error = Program::compile("extern \"C\" __global__ void broken( {").map(|_| ()).unwrap_err();
        assert!(error.contains("does not compile the CUDA kernels"), "{error}");
    }
}
