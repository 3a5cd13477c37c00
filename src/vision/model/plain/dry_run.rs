//! Trying a graph: what it really takes, and what it really gives.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array4;
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use crate::model::ModelError;
use crate::model::raw_session::RawSession;
use crate::model::session::Graph;

/// The graph's input as it is declared.
pub(super) struct Input {
    /// Its name.
    pub(super) name: String,
    /// Whether it is of 16 bits.
    pub(super) half: bool,
    /// Pictures of each run, where their number is fixed.
    pub(super) batch: Option<usize>,
    /// Height, where it is fixed.
    pub(super) height: Option<usize>,
    /// Width, where it is fixed.
    pub(super) width: Option<usize>,
}

/// A graph that is being tried.
pub(super) struct DryRun {
    session: RawSession,
    pub(super) input: Input,
}

/// Shapes of the outputs by name, and whether all numbers are finite.
pub(super) struct DryRunOutputs {
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    pub(super) finite: bool,
}

impl DryRun {
    /// Loads the graph.
    pub(super) fn open(graph: Graph<'_>, path: &Path) -> Result<Self, ModelError> {
        let session = RawSession::of_file(graph, path)?;
        let input = input(&session.session).map_err(|reason| ModelError::Graph { path: path.to_owned(), reason })?;
        Ok(Self { session, input })
    }

    /// Runs so many made-up pictures of one size.
    pub(super) fn run(&mut self, batch: usize, height: usize, width: usize) -> Result<DryRunOutputs, ModelError> {
        // A pattern whose period no patch shares, in the range of normalised pixels.
        let pixels = Array4::from_shape_fn((batch, 3, height, width), |(picture, channel, row, column)| {
            ((picture * 31 + channel * 7919 + row * 104_729 + column * 1_299_709) % 1009) as f32 / 252.0 - 2.0
        });
        let outputs = self.session.run(pixels.view())?;
        let finite = outputs.values().all(|numbers| numbers.iter().all(|number| number.is_finite()));
        Ok(DryRunOutputs { shapes: outputs.into_iter().map(|(name, numbers)| (name, numbers.shape().to_vec())).collect(), finite })
    }
}

/// The one input, if it is one for pictures.
fn input(session: &Session) -> Result<Input, String> {
    let [outlet] = session.inputs() else {
        let names: Vec<_> = session.inputs().iter().map(Outlet::name).collect();
        return Err(format!("it has the inputs {}, and a vision backbone has one: the pixels", names.join(", ")));
    };
    let name = outlet.name().to_owned();
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(format!("its input `{name}` is no tensor"));
    };
    let half = match ty {
        TensorElementType::Float32 => false,
        TensorElementType::Float16 => true,
        other => return Err(format!("its input `{name}` is of type {other}; float32 and float16 are fed")),
    };
    let [batch, channels, height, width] = shape[..] else {
        return Err(format!("its input `{name}` has the shape {shape:?}, not [batch, 3, height, width]"));
    };
    if channels != 3 && channels >= 0 {
        let last = if width == 3 { " (channels last; export it with channels first)" } else { "" };
        return Err(format!("its input `{name}` has the shape {shape:?}, not [batch, 3, height, width]{last}"));
    }
    let fixed = |side: i64| usize::try_from(side).ok().filter(|side| *side > 0);
    Ok(Input { name, half, batch: fixed(batch), height: fixed(height), width: fixed(width) })
}
