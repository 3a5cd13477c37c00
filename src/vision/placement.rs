//! Where a model runs: its sessions on one device, which computes what ONNX Runtime's CPU computes.
//!
//! ```no_run
//! use dino_vision::model::{Device, Model, SessionOptions};
//! use dino_vision::placement::{Placement, Workload};
//!
//! let model = Model::open("models/demo".as_ref())?;
//! let options = SessionOptions { device: Device::Cuda(0), ..SessionOptions::default() };
//! let placement = Placement::of(&model, &options, Workload { sessions: Some(2), batch: None })?;
//! assert_eq!(placement.sessions.len(), 2);
//! assert!(placement.agreement.is_some_and(|agreement| agreement.cosine() > 0.999));
//! # Ok::<(), dino_vision::model::ModelError>(())
//! ```

use std::time::{Duration, Instant};

use ndarray::Axis;

use crate::agreement::{Agreement, Reference};
use crate::batch::{Budget, Engine, EngineError};
use crate::cores;
use crate::model::{Device, Model, ModelError, Outputs, Precision, Session, SessionOptions, devices};
use crate::workers::{SessionEngine, budget, default_sessions, usual_size};

/// Patches along the side of the pictures that are compared, where the model's transform leaves every size as it is.
const SIDE_PATCHES: u32 = 4;
/// Time for which each device is measured. A run that has begun is finished.
const MEASURED: Duration = Duration::from_millis(300);
/// Most pictures in a run that is measured.
const MEASURED_BATCH: usize = 8;
/// Times that another device has to be faster than ONNX Runtime's CPU: less is noise, and its answers are rounded otherwise.
const FASTER: f64 = 1.1;

/// How much runs at once; what is left out follows from the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workload {
    /// Copies of the model: one per core on a CPU, else one.
    pub sessions: Option<usize>,
    /// Most pictures in one run: one on a CPU, where two sessions of one picture beat one session of two.
    pub batch: Option<usize>,
}

/// The sessions of a model, each for a worker of its own.
pub struct Placement {
    /// All on one device.
    pub sessions: Vec<SessionEngine>,
    /// That device; never [`Device::Auto`].
    pub device: Device,
    /// How near its outputs are to those of ONNX Runtime's CPU; `None` on that CPU itself.
    pub agreement: Option<Agreement>,
    /// What one run may take.
    pub budget: Budget,
}

impl Placement {
    /// Starts the sessions of a model. A device other than ONNX Runtime's CPU first runs two pictures as that CPU does: what it makes of
    /// them has to be the same. The model is loaded once more for that, for a moment.
    ///
    /// Of [`Device::Auto`] becomes the fastest device that is there and computes what that CPU does, as measured in a few tenths of a second
    /// on each; where there is no other, nothing is measured.
    ///
    /// # Errors
    /// [`ModelError::Disagrees`], where the options do not trust the device; those of opening and of running the model.
    pub fn of(model: &Model, options: &SessionOptions, workload: Workload) -> Result<Self, ModelError> {
        if options.device == Device::Auto {
            return Self::fastest(model, options, workload);
        }
        let mut first = Candidate::start(model, options, workload)?;
        if first.device != Device::Cpu {
            let on_cpu = SessionOptions { device: Device::Cpu, threads: cores::available(), ..options.clone() };
            let reference = Candidate::start(model, &on_cpu, workload)?.reference(model)?;
            first.agree(&reference, model, options)?;
        }
        first.complete(model, options, workload)
    }

    fn fastest(model: &Model, options: &SessionOptions, workload: Workload) -> Result<Self, ModelError> {
        let devices = devices()?;
        let start = |device| Candidate::start(model, &SessionOptions { device, ..options.clone() }, workload);
        let mut best = start(Device::Cpu)?;
        if devices.len() == 1 {
            return best.complete(model, options, workload);
        }
        let reference = best.reference(model)?;
        // Trust is for a device that is named: what differs from the CPU is never the choice of `auto`.
        let untrusted = SessionOptions { trust_device: false, ..options.clone() };
        let cpu = best.pictures_per_second(&reference, options, workload)?;
        let (mut most, mut measured) = (cpu * FASTER, format!("cpu {cpu:.1}"));
        for device in devices.into_iter().filter(|device| *device != Device::Cpu) {
            let tried = start(device).and_then(|mut candidate| {
                candidate.agree(&reference, model, &untrusted)?;
                let rate = candidate.pictures_per_second(&reference, options, workload)?;
                Ok((candidate, rate))
            });
            match tried {
                Ok((candidate, rate)) => {
                    measured.extend([", ", &device.to_string(), &format!(" {rate:.1}")]);
                    if rate > most {
                        (best, most) = (candidate, rate);
                    }
                }
                Err(error) => tracing::info!(%device, %error, "not used"),
            }
        }
        tracing::info!(pictures_per_second = measured, device = %best.device, "the fastest device was measured");
        best.complete(model, options, workload)
    }
}

/// A first session on a device that may be used.
struct Candidate {
    engine: SessionEngine,
    device: Device,
    budget: Budget,
    agreement: Option<Agreement>,
}

impl Candidate {
    fn start(model: &Model, options: &SessionOptions, workload: Workload) -> Result<Self, ModelError> {
        let engine = SessionEngine(only(model.sessions(options, 1)?)?);
        let device = engine.0.device();
        Ok(Self { engine, device, budget: budget(device, model, workload.batch), agreement: None })
    }

    /// What it makes of two pictures.
    fn reference(&mut self, model: &Model) -> Result<Reference, ModelError> {
        Reference::of(&mut self.engine, model.manifest(), compared_size(model)).map_err(failed)
    }

    /// Refuses a device that computes something else, unless it is trusted.
    fn agree(&mut self, reference: &Reference, model: &Model, options: &SessionOptions) -> Result<(), ModelError> {
        let precision = model.precision(options.precision);
        let agreement = agree(reference, &mut self.engine, self.device, precision, self.budget.pictures, options.trust_device)?;
        self.agreement = Some(agreement);
        Ok(())
    }

    /// What all sessions together would run, if each is as fast as this one.
    fn pictures_per_second(&mut self, reference: &Reference, options: &SessionOptions, workload: Workload) -> Result<f64, ModelError> {
        let pictures = reference.pictures();
        let batch = self.budget.pictures.clamp(1, MEASURED_BATCH);
        let indices: Vec<usize> = (0..batch).map(|index| index % pictures.len_of(Axis(0))).collect();
        let pictures = pictures.select(Axis(0), &indices);
        // A device may compile the graph anew for a batch of another length.
        self.engine.run(pictures.view()).map_err(failed)?;
        let (began, mut runs) = (Instant::now(), 0);
        while runs == 0 || began.elapsed() < MEASURED {
            self.engine.run(pictures.view()).map_err(failed)?;
            runs += 1;
        }
        let sessions = workload.sessions.unwrap_or_else(|| default_sessions(self.device, options.threads)).max(1);
        Ok((sessions * runs * batch) as f64 / began.elapsed().as_secs_f64())
    }

    /// The other sessions beside the first.
    fn complete(self, model: &Model, options: &SessionOptions, workload: Workload) -> Result<Placement, ModelError> {
        let Self { engine, device, budget, agreement } = self;
        let options = SessionOptions { device, ..options.clone() };
        let count = workload.sessions.unwrap_or_else(|| default_sessions(device, options.threads)).max(1);
        let mut sessions = vec![engine];
        sessions.extend(model.sessions(&options, count - 1)?.into_iter().map(SessionEngine));
        Ok(Placement { sessions, device, agreement, budget })
    }
}

/// Compares a device with what ONNX Runtime's CPU made of the pictures.
fn agree<E: Engine<Output = Outputs>>(
    reference: &Reference,
    engine: &mut E,
    device: Device,
    precision: Precision,
    batch: usize,
    trust_device: bool,
) -> Result<Agreement, ModelError> {
    let agreement = reference.compare(engine, precision, batch);
    let agreement = agreement.map_err(|error| ModelError::Device { device, reason: format!("it fails on its first picture: {error}") })?;
    match agreement.check() {
        Err(reason) if trust_device => {
            tracing::warn!(%device, "this device {reason}; --trust-device takes its answers all the same");
        }
        Err(reason) => return Err(ModelError::Disagrees { device, reason: reason.to_string() }),
        Ok(()) => tracing::info!(%device, cosine = agreement.cosine(), "computes what ONNX Runtime's CPU computes"),
    }
    Ok(agreement)
}

/// (height, width) of the pictures that are compared.
fn compared_size(model: &Model) -> (u32, u32) {
    let side = SIDE_PATCHES * model.manifest().patch_size;
    usual_size(model).unwrap_or((side, side))
}

fn only(mut sessions: Vec<Session>) -> Result<Session, ModelError> {
    sessions.pop().ok_or_else(|| ModelError::Run("no session was started".to_owned()))
}

fn failed(error: EngineError) -> ModelError {
    ModelError::Run(error.0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::ArrayView4;

    use super::*;

    /// A device that is there, and runs nothing.
    struct Dead;

    impl Engine for Dead {
        type Output = Outputs;

        fn run(&mut self, _: ArrayView4<'_, f32>) -> Result<Vec<Outputs>, EngineError> {
            Err(EngineError("the context was lost".to_owned()))
        }
    }

    /// A real session whose CLS tokens are changed afterwards.
    struct Wrong(SessionEngine, f32);

    impl Engine for Wrong {
        type Output = Outputs;

        fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<Outputs>, EngineError> {
            let mut outputs = self.0.run(pictures)?;
            for tokens in outputs.iter_mut().filter_map(|outputs| outputs.last_hidden_state.as_mut()) {
                tokens[[0, 0, 0]] += self.1;
            }
            Ok(outputs)
        }
    }

    #[test]
    fn a_device_that_differs_is_refused_unless_it_is_trusted() {
        let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-model")).unwrap();
        let cpu = SessionOptions { device: Device::Cpu, ..SessionOptions::default() };
        let session = || SessionEngine(model.sessions(&cpu, 1).unwrap().remove(0));
        let reference = Reference::of(&mut session(), model.manifest(), compared_size(&model)).unwrap();
        let agree = |change, trusted| agree(&reference, &mut Wrong(session(), change), Device::Cuda(1), Precision::F32, 2, trusted);

        let same = agree(0.0, false).unwrap();
        assert!(same.cosine() > 0.999_999, "{same:?}");
        let error = agree(50.0, false).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ModelError::Disagrees { device: Device::Cuda(1), .. }), "{said}");
        assert!(said.contains("device cuda:1 differs") && said.contains("--trust-device") && said.contains("0.999 is needed"), "{said}");
        let figures = agree(50.0, true).unwrap();
        assert!(figures.cosine() < 0.9 && figures.check().is_err(), "{figures:?}");
        let nan = agree(f32::NAN, false).unwrap_err().to_string();
        assert!(nan.contains("not finite"), "{nan}");
        // Trust does not help a device that gives nothing.
        let dead = super::agree(&reference, &mut Dead, Device::Cuda(0), Precision::F32, 2, true).unwrap_err().to_string();
        assert!(dead.contains("cuda:0 cannot be used") && dead.contains("the context was lost") && dead.contains("--device cpu"), "{dead}");
    }

    #[test]
    fn the_cpu_is_compared_with_nothing() {
        let model = Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-model")).unwrap();
        let options = SessionOptions { device: Device::Cpu, precision: Precision::F32, ..SessionOptions::default() };
        let placement = Placement::of(&model, &options, Workload { sessions: Some(3), batch: None }).unwrap();
        assert_eq!((placement.sessions.len(), placement.device, placement.budget.pictures), (3, Device::Cpu, 1));
        assert!(placement.agreement.is_none());
    }
}
