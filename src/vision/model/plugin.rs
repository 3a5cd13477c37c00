//! Execution providers in libraries of their own, which ONNX Runtime loads while it runs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::DeviceType;
use parking_lot::Mutex;

use super::Device;
use super::device::Hardware;
use super::runtime;

/// OpenVINO's name for itself; it also offers devices that choose between others.
const OPENVINO: &str = "OpenVINOExecutionProvider";
/// Longest name of a provider; the bindings of ONNX Runtime put it before each of its options, into 128 bytes.
const MOST_NAME: usize = 120;

/// What a library offers.
type Offers = Arc<Vec<Offer>>;

/// A device that a library runs graphs on.
struct Offer {
    /// Name of the execution provider.
    provider: String,
    hardware: Option<Hardware>,
    vendor: String,
    /// Where ONNX Runtime keeps the device, which tells devices of one name apart. It stays there: libraries are not unloaded.
    address: usize,
}

/// Where a session runs, of the devices that plug-ins offer.
pub(super) struct Chosen<'e> {
    /// The device.
    pub(super) device: ort::device::Device<'e>,
    /// Settings of its provider.
    pub(super) options: Vec<(String, String)>,
}

/// The device of a plug-in that `device` names; `None` where it names another one.
///
/// # Errors
/// Where the library cannot be loaded, or offers no such device: a sentence for the user who named it.
pub(super) fn choose(environment: &Environment, device: Device, threads: usize) -> Result<Option<Chosen<'_>>, String> {
    let (offers, position) = match device {
        Device::Auto | Device::Cpu | Device::Cuda(_) | Device::TensorRt(_) => return Ok(None),
        Device::OpenVino(hardware) => {
            let offers = offers(environment, &runtime::openvino_library()?)?;
            let position = offers.iter().position(|offer| offer.provider == OPENVINO && offer.hardware == Some(hardware));
            (offers, position.ok_or("OpenVINO's plug-in offers none on this machine; up to version 1.8 it takes Intel's hardware alone")?)
        }
        Device::Plugin { library, number } => {
            let offers = offers(environment, library)?;
            if number >= offers.len() {
                return Err(format!("{} offers {}", library.display(), listed(&offers)));
            }
            (offers, number)
        }
    };
    let address = offers[position].address;
    let found = environment.devices().find(|found| found.ptr() as usize == address);
    let options = match device {
        Device::OpenVino(Hardware::Cpu) => vec![(format!("{OPENVINO}.load_config"), openvino_on_cpu(threads))],
        _ => Vec::new(),
    };
    Ok(Some(Chosen { device: found.ok_or("ONNX Runtime does not know it any more")?, options }))
}

/// Whether OpenVINO's plug-in is there and offers a device on this hardware.
pub(super) fn has_openvino(environment: &Environment, hardware: Hardware) -> bool {
    let offers = runtime::openvino_library().and_then(|library| offers(environment, &library));
    offers.is_ok_and(|offers| offers.iter().any(|offer| offer.provider == OPENVINO && offer.hardware == Some(hardware)))
}

/// One stream of so many threads in each session: sessions side by side answer more pictures than streams in one. Threads are not tied
/// to cores, since each session would take the same ones. The type of numbers is left to OpenVINO: bfloat16 where the processor has it.
fn openvino_on_cpu(threads: usize) -> String {
    format!(r#"{{"CPU": {{"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "{}", "ENABLE_CPU_PINNING": "NO"}}}}"#, threads.max(1))
}

/// The devices of a library, which is loaded when it is first asked for.
fn offers(environment: &Environment, library: &Path) -> Result<Offers, String> {
    /// Held while a library is loaded, which happens once, while models are loaded and not for requests: what ONNX Runtime lists
    /// afterwards and did not before is of this library.
    static LIBRARIES: Mutex<BTreeMap<PathBuf, Result<Offers, String>>> = Mutex::new(BTreeMap::new());
    let library = library.canonicalize().map_err(|error| format!("{}: {error}", library.display()))?;
    let mut libraries = LIBRARIES.lock();
    libraries.entry(library.clone()).or_insert_with(|| load(environment, &library).map(Arc::new)).clone()
}

fn load(environment: &Environment, library: &Path) -> Result<Vec<Offer>, String> {
    let known: Vec<_> = environment.devices().map(|device| device.ptr()).collect();
    environment
        .register_ep_library(library.display().to_string(), library)
        .map_err(|error| format!("{} is no plug-in for ONNX Runtime: {error}", library.display()))?;
    let new = environment.devices().filter(|device| !known.contains(&device.ptr()));
    Ok(new
        .filter_map(|device| {
            let provider = device.ep().ok().filter(|name| name.len() <= MOST_NAME)?.to_owned();
            let hardware = device.hardware_device();
            let kind = match hardware.ty() {
                DeviceType::CPU => Some(Hardware::Cpu),
                DeviceType::GPU => Some(Hardware::Gpu),
                DeviceType::NPU => Some(Hardware::Npu),
                DeviceType::FPGA => None,
            };
            Some(Offer {
                provider,
                hardware: kind,
                vendor: hardware.vendor().unwrap_or_default().to_owned(),
                address: device.ptr() as usize,
            })
        })
        .collect())
}

/// What there is, in words.
fn listed(offers: &[Offer]) -> String {
    if offers.is_empty() {
        return "no device on this machine".to_owned();
    }
    let mut text = format!("{} device{}", offers.len(), if offers.len() == 1 { "" } else { "s" });
    for (number, Offer { provider, hardware, vendor, .. }) in offers.iter().enumerate() {
        let hardware = hardware.map_or("other hardware", Hardware::as_str);
        write!(text, "{} {number} ({provider} on {hardware}, {vendor})", if number == 0 { ":" } else { "," })
            .expect("a string takes every write");
    }
    text
}
