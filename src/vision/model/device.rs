//! What runs a graph, and in which precision.

use std::fmt;
use std::path::{Path, PathBuf};
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

/// Kinds of hardware that OpenVINO runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hardware {
    /// The processor.
    #[default]
    Cpu,
    /// A graphics processor.
    Gpu,
    /// A neural processor.
    Npu,
}

impl Hardware {
    /// Its name, as the flag writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Gpu => "GPU",
            Self::Npu => "NPU",
        }
    }
}

/// What runs the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The fastest of those that are there and compute what ONNX Runtime's CPU computes, as measured at the start.
    #[default]
    Auto,
    /// ONNX Runtime's own code for the CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(i32),
    /// TensorRT on the CUDA device of this number.
    TensorRt(i32),
    /// OpenVINO's plug-in on this hardware.
    OpenVino(Hardware),
    /// A device of another plug-in.
    Plugin {
        /// The library, which stays loaded until the process ends.
        library: &'static Path,
        /// Which of the devices that it offers, from 0.
        number: usize,
    },
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
    /// Its name without a number: devices of one kind compute the same.
    pub fn kind(self) -> String {
        match self {
            Self::Cuda(_) => "cuda".to_owned(),
            Self::TensorRt(_) => "tensorrt".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether the cores of this machine do the work.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Cpu | Self::OpenVino(Hardware::Cpu))
    }

    /// What ONNX Runtime is asked for, beside the devices of plug-ins, to run a graph whose pixels are called `input`. Each fails where it cannot be had: silently
    /// running on the CPU instead would be a lie.
    pub(super) fn providers(self, input: &str, accelerator: &Accelerator) -> Vec<ExecutionProviderDispatch> {
        let cuda = |number| accelerator.cuda(number).error_on_failure();
        let tensorrt = |number| accelerator.tensorrt(number, input).error_on_failure();
        match self {
            Self::Auto | Self::Cpu | Self::OpenVino(_) | Self::Plugin { .. } => Vec::new(),
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
            Self::OpenVino(hardware) => write!(formatter, "openvino:{}", hardware.as_str()),
            Self::Plugin { library, number } => write!(formatter, "plugin:{}:{number}", library.display()),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(plugin) = text.strip_prefix("plugin:") {
            let (library, number) = match plugin.rsplit_once(':').map(|(library, number)| (library, number.parse())) {
                Some((library, Ok(number))) => (library, number),
                _ => (plugin, 0),
            };
            if library.is_empty() {
                return Err("expected plugin:PATH or plugin:PATH:N, with the path of a library".to_owned());
            }
            // The library stays loaded until the process ends, and so does its path.
            return Ok(Self::Plugin { library: Box::leak(PathBuf::from(library).into_boxed_path()), number });
        }
        if let Some(hardware) = text.strip_prefix("openvino") {
            let known = [Hardware::Cpu, Hardware::Gpu, Hardware::Npu];
            let named = hardware.strip_prefix(':').and_then(|name| known.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(name)));
            return match named {
                Some(hardware) => Ok(Self::OpenVino(hardware)),
                None if hardware.is_empty() => Ok(Self::OpenVino(Hardware::Cpu)),
                None => Err(format!("unknown device `{text}`; OpenVINO's are openvino:CPU, openvino:GPU, openvino:NPU")),
            };
        }
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, number.parse().ok().filter(|number| *number >= 0)),
            None => (text, Some(0)),
        };
        match (name, number, text.contains(':')) {
            ("auto", _, false) => Ok(Self::Auto),
            ("cpu", _, false) => Ok(Self::Cpu),
            ("cuda", Some(number), _) => Ok(Self::Cuda(number)),
            ("tensorrt", Some(number), _) => Ok(Self::TensorRt(number)),
            _ => Err(format!(
                "unknown device `{text}`; known are auto, cpu, cuda[:N], tensorrt[:N], openvino[:CPU|GPU|NPU], plugin:PATH[:N]"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Device, Hardware, Precision};

    #[test]
    fn devices_parse_as_the_flag_writes_them() {
        for (text, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("tensorrt:1", Device::TensorRt(1)),
            ("openvino", Device::OpenVino(Hardware::Cpu)),
            ("openvino:gpu", Device::OpenVino(Hardware::Gpu)),
            ("plugin:/a/lib.so", Device::Plugin { library: Path::new("/a/lib.so"), number: 0 }),
            ("plugin:lib:x.so:2", Device::Plugin { library: Path::new("lib:x.so"), number: 2 }),
        ] {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in [
            "",
            "gpu",
            "cpu:0",
            "auto:1",
            "cuda:",
            "cuda:-1",
            "cuda:x",
            "CUDA",
            "openvino:",
            "openvino:0",
            "openvinox",
            "plugin:",
            "plugin::1",
        ] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!("int8".parse(), Ok(Precision::Int8));
        assert!("fp16".parse::<Precision>().unwrap_err().contains("f32, f16, int8"));
    }
}
