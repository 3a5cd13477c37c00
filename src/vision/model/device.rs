//! What runs a graph, and in which precision.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ort::ep::{self, ExecutionProviderDispatch};

/// Which of a folder's ONNX files runs. Inputs and outputs are 32-bit floats in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// `model.onnx`.
    #[default]
    F32,
    /// `model.f16.onnx`.
    F16,
    /// `model.int8.onnx`.
    Int8,
}

impl Precision {
    /// Its name, as the flag and the manifest write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::F32, Self::F16, Self::Int8]
            .into_iter()
            .find(|precision| precision.as_str() == text)
            .ok_or_else(|| format!("unknown precision `{text}`; known are f32, f16, int8"))
    }
}

/// What runs the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first CUDA device where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(i32),
    /// TensorRT on the CUDA device of this number.
    TensorRt(i32),
}

/// What a session may use of an accelerator. A CPU has none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accelerator {
    /// Bytes of the device's memory that the arena of a session grows to; as many as there are, if `None`.
    pub memory: Option<usize>,
    /// Folder for the engines that TensorRT builds, which takes it minutes; without one it builds them at each start.
    pub engines: Option<PathBuf>,
    /// All that will be run. TensorRT compiles a graph for this range, and refuses what is not in it. Without one it compiles the
    /// graph anew, for minutes, whenever a batch comes that is larger or smaller than those before.
    pub shapes: Option<Shapes>,
}

/// Batches that a session has to be ready for, each `[B, H, W]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// No side is shorter than this.
    pub smallest: [usize; 3],
    /// What to be fast with.
    pub usual: [usize; 3],
    /// No side is longer than this.
    pub largest: [usize; 3],
}

impl Accelerator {
    fn cuda(&self, number: i32) -> ExecutionProviderDispatch {
        let cuda = ep::CUDA::default().with_device_id(number);
        match self.memory {
            Some(bytes) => cuda.with_memory_limit(bytes),
            None => cuda,
        }
        .build()
    }

    fn tensorrt(&self, number: i32, input: &str) -> ExecutionProviderDispatch {
        let mut tensorrt = ep::TensorRT::default().with_device_id(number);
        // A name with these signs in it cannot be written in a profile.
        if let Some(Shapes { smallest, usual, largest }) = self.shapes.filter(|_| !input.contains([':', ','])) {
            let profile = |[batch, height, width]: [usize; 3]| format!("{input}:{batch}x3x{height}x{width}");
            tensorrt = tensorrt
                .with_profile_min_shapes(profile(smallest))
                .with_profile_opt_shapes(profile(usual))
                .with_profile_max_shapes(profile(largest));
        }
        if let Some(bytes) = self.memory {
            tensorrt = tensorrt.with_max_workspace_size(bytes);
        }
        if let Some(folder) = &self.engines {
            let folder = folder.display();
            tensorrt =
                tensorrt.with_engine_cache(true).with_engine_cache_path(&folder).with_timing_cache(true).with_timing_cache_path(&folder);
        }
        tensorrt.build()
    }
}

impl Device {
    /// What ONNX Runtime is asked for, to run a graph whose pixels are called `input`. Each fails where it cannot be had: silently
    /// running on the CPU instead would be a lie.
    pub(super) fn providers(self, input: &str, accelerator: &Accelerator) -> Vec<ExecutionProviderDispatch> {
        let cuda = |number| accelerator.cuda(number).error_on_failure();
        let tensorrt = |number| accelerator.tensorrt(number, input).error_on_failure();
        match self {
            Self::Auto | Self::Cpu => Vec::new(),
            Self::Cuda(number) => vec![cuda(number)],
            // What TensorRT does not take runs on the same device.
            Self::TensorRt(number) => vec![tensorrt(number), cuda(number)],
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(number) => write!(formatter, "cuda:{number}"),
            Self::TensorRt(number) => write!(formatter, "tensorrt:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, number.parse().ok().filter(|number| *number >= 0)),
            None => (text, Some(0)),
        };
        match (name, number, text.contains(':')) {
            ("auto", _, false) => Ok(Self::Auto),
            ("cpu", _, false) => Ok(Self::Cpu),
            ("cuda", Some(number), _) => Ok(Self::Cuda(number)),
            ("tensorrt", Some(number), _) => Ok(Self::TensorRt(number)),
            _ => Err(format!("unknown device `{text}`; known are auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Device, Precision};

    #[test]
    fn devices_parse_as_the_flag_writes_them() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("tensorrt:1", Device::TensorRt(1)),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["", "gpu", "cpu:0", "auto:1", "cuda:", "cuda:-1", "cuda:x", "CUDA"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!("int8".parse(), Ok(Precision::Int8));
        assert!("fp16".parse::<Precision>().unwrap_err().contains("f32, f16, int8"));
    }
}
