//! Where a model runs: its sessions on one device, which computes what ONNX Runtime's CPU computes.

use crate::agreement::{Agreement, Reference};
use crate::batch::{Budget, Engine, EngineError};
use crate::cores;
use crate::model::{Device, Model, ModelError, Outputs, Session, SessionOptions};
use crate::workers::{SessionEngine, budget, default_sessions, usual_size};

/// Patches along the side of the pictures that are compared, where the model's transform leaves every size as it is.
const SIDE_PATCHES: u32 = 4;

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
    /// # Errors
    /// [`ModelError::Disagrees`], where the options do not trust the device; those of opening and of running the model.
    pub fn of(model: &Model, options: &SessionOptions, workload: Workload) -> Result<Self, ModelError> {
        let mut sessions: Vec<_> = model.sessions(options, 1)?.into_iter().map(SessionEngine).collect();
        // What `auto` came to, so that all sessions of a model run in one place.
        let device = sessions[0].0.device();
        let options = SessionOptions { device, ..options.clone() };
        let budget = budget(device, model, workload.batch);
        let agreement = match device {
            Device::Cpu => None,
            _ => Some(compare(model, &mut sessions[0], &options, budget.pictures)?),
        };
        let count = workload.sessions.unwrap_or_else(|| default_sessions(device, options.threads)).max(1);
        sessions.extend(model.sessions(&options, count - 1)?.into_iter().map(SessionEngine));
        Ok(Self { sessions, device, agreement, budget })
    }
}

/// Compares the device of a session with ONNX Runtime's CPU. `batch`: most pictures that it runs at once.
fn compare(model: &Model, session: &mut SessionEngine, options: &SessionOptions, batch: usize) -> Result<Agreement, ModelError> {
    let on_cpu = SessionOptions { device: Device::Cpu, threads: cores::available(), ..options.clone() };
    let mut cpu = SessionEngine(only(model.sessions(&on_cpu, 1)?)?);
    let reference = Reference::of(&mut cpu, model.manifest(), compared_size(model)).map_err(failed)?;
    drop(cpu);
    agree(&reference, session, model, options, batch)
}

/// Compares a device with what ONNX Runtime's CPU made of the pictures.
fn agree<E: Engine<Output = Outputs>>(
    reference: &Reference,
    engine: &mut E,
    model: &Model,
    options: &SessionOptions,
    batch: usize,
) -> Result<Agreement, ModelError> {
    let device = options.device;
    let agreement = reference.compare(engine, model.precision(options.precision), batch).map_err(failed)?;
    match agreement.check() {
        Err(reason) if options.trust_device => {
            tracing::warn!(%device, "this device {reason}; --trust-device takes its answers all the same")
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
    use crate::model::Precision;

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
        let options = SessionOptions { device: Device::Cuda(1), ..cpu.clone() };
        let agree = |change, options: &SessionOptions| agree(&reference, &mut Wrong(session(), change), &model, options, 2);

        let same = agree(0.0, &options).unwrap();
        assert!(same.cosine() > 0.999_999, "{same:?}");
        let error = agree(50.0, &options).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, ModelError::Disagrees { device: Device::Cuda(1), .. }), "{said}");
        assert!(said.contains("device cuda:1 differs") && said.contains("--trust-device") && said.contains("0.999 is needed"), "{said}");
        let trusted = SessionOptions { trust_device: true, ..options.clone() };
        let figures = agree(50.0, &trusted).unwrap();
        assert!(figures.cosine() < 0.9 && figures.check().is_err(), "{figures:?}");
        let nan = agree(f32::NAN, &options).unwrap_err().to_string();
        assert!(nan.contains("not finite"), "{nan}");
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
