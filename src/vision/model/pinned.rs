//! How pixels get to an accelerator, and how what it computed gets back.

use half::f16;
use ndarray::{ArrayView4, ArrayViewMutD};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynTensor, TensorElementType};

use super::Device;

/// Memory of the host that an accelerator reads and writes by itself. What lies in other memory is copied once more on its way,
/// piece by piece, while the accelerator waits.
pub(super) struct Pinned {
    /// Of the pixels' memory.
    allocator: Allocator,
    /// Where outputs are put.
    output: MemoryInfo<'static>,
    /// The pixels of the last batch, whose memory serves the next one of its shape.
    pixels: Option<([usize; 4], DynTensor)>,
}

impl Pinned {
    /// That of the device which the session runs on; `None` for a CPU, which reads all memory by itself, and for plug-ins, whose
    /// memory has no name here.
    pub(super) fn of(session: &Session, device: Device) -> ort::Result<Option<Self>> {
        match device {
            Device::Auto | Device::Cpu | Device::OpenVino(_) | Device::Plugin { .. } => Ok(None),
            Device::Cuda(number) | Device::TensorRt(number) => Self::at(session, AllocationDevice::CUDA_PINNED, number).map(Some),
        }
    }

    fn at(session: &Session, place: AllocationDevice<'static>, number: i32) -> ort::Result<Self> {
        let memory = |kind| MemoryInfo::new(place.clone(), number, AllocatorType::Device, kind);
        let allocator = Allocator::new(session, memory(MemoryType::CPUInput)?)?;
        Ok(Self { allocator, output: memory(MemoryType::CPUOutput)?, pixels: None })
    }

    /// A run of the session on `pixels` `[B, 3, H, W]`, in the type that its input has. Outputs that are not named stay where they are.
    pub(super) fn bind<'a>(
        &mut self,
        session: &Session,
        input: &str,
        pixels: ArrayView4<'_, f32>,
        half_input: bool,
        outputs: impl Iterator<Item = &'a str>,
    ) -> ort::Result<IoBinding> {
        let tensor = self.pixels(pixels.dim().into(), half_input)?;
        if half_input {
            let mut to: ArrayViewMutD<'_, f16> = tensor.try_extract_array_mut()?;
            to.zip_mut_with(&pixels.into_dyn(), |to, from| *to = f16::from_f32(*from));
        } else {
            tensor.try_extract_array_mut::<f32>()?.assign(&pixels.into_dyn());
        }
        let mut binding = session.create_binding()?;
        binding.bind_input(input, tensor)?;
        // Kept for one run: a buffer of outputs does not fit the next batch, if that has another shape.
        for output in outputs {
            binding.bind_output_to_device(output, &self.output)?;
        }
        // Where a device copies behind the caller's back, a run does not wait for it. This does, and for all else that the device does.
        binding.synchronize_inputs()?;
        Ok(binding)
    }

    fn pixels(&mut self, shape: [usize; 4], half: bool) -> ort::Result<&mut DynTensor> {
        let fitting = self.pixels.take().filter(|(of, _)| *of == shape);
        let (_, tensor) = self.pixels.insert(if let Some(fitting) = fitting {
            fitting
        } else {
            let kind = if half { TensorElementType::Float16 } else { TensorElementType::Float32 };
            (shape, DynTensor::new(&self.allocator, kind, shape)?)
        });
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::Array4;

    use super::*;
    use crate::model::session::{Graph, numbers, run, start};
    use crate::model::{OUTPUTS, SessionOptions};

    /// Memory of the CPU is used in place of an accelerator's: all but the copies is the same.
    #[test]
    fn bound_memory_gives_what_a_plain_run_gives_for_batches_of_all_shapes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny/model.onnx");
        let options = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
        let (mut session, _) = start(Graph::File, &path, "pixel_values", &options).unwrap();
        let mut pinned = Pinned::at(&session, AllocationDevice::CPU, 0).unwrap();
        for (batch, height, width, shift) in [(2, 16, 24, 0), (2, 16, 24, 1), (1, 8, 8, 2), (3, 24, 16, 3), (2, 16, 24, 4)] {
            let value = |(b, c, y, x)| ((b * 7 + c * 5 + y * 3 + x + shift) % 11) as f32 / 11.0;
            // Channels last in memory.
            let pixels = Array4::from_shape_fn((batch, height, width, 3), |(b, y, x, c)| value((b, c, y, x)));
            let pixels = pixels.view().permuted_axes([0, 3, 1, 2]);
            let expected: Vec<_> = {
                let outputs = run(&mut session, pixels, false).unwrap();
                OUTPUTS.iter().filter_map(|name| Some((*name, numbers(outputs.get(name)?).unwrap()))).collect()
            };
            let names = expected.iter().map(|(name, _)| *name);
            let binding = pinned.bind(&session, "pixel_values", pixels, false, names).unwrap();
            let outputs = session.run_binding(&binding).unwrap();
            assert!(expected.len() > 2 && outputs.len() == expected.len());
            for (name, expected) in expected {
                assert_eq!(numbers(&outputs[name]).unwrap(), expected, "{name}");
            }
        }
    }
}
