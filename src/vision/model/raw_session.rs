//! A graph that is run for all of its outputs, whatever their names: to look into it, not to serve it.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{ArrayD, ArrayView4};
use ort::session::Session;
use ort::value::{TensorElementType, ValueType};

use super::session::{self, Graph};
use super::{Device, ModelError, SessionOptions};
use crate::cores;

/// A loaded graph with one input, on all cores.
pub struct RawSession {
    pub(super) session: Session,
    /// Whether its input is of 16 bits.
    pub(super) half_input: bool,
}

impl RawSession {
    /// Loads a graph, the bytes of a file that holds its own weights.
    ///
    /// # Errors
    /// [`ModelError::Graph`] and [`ModelError::Runtime`].
    pub fn of_bytes(graph: &[u8]) -> Result<Self, ModelError> {
        Self::start(Graph::Bytes { graph, data: &[] }, Path::new("the graph"))
    }

    /// Loads the file at `path`, whose weights may lie in others beside it, for a few runs: ONNX Runtime maps those weights into memory and
    /// makes no copy of them in a faster form.
    ///
    /// # Errors
    /// [`ModelError::Graph`] and [`ModelError::Runtime`].
    pub fn of_mapped_file(path: &Path) -> Result<Self, ModelError> {
        Self::start(Graph::Mapped, path)
    }

    pub(super) fn of_file(graph: Graph<'_>, path: &Path) -> Result<Self, ModelError> {
        Self::start(graph, path)
    }

    fn start(graph: Graph<'_>, path: &Path) -> Result<Self, ModelError> {
        let options = SessionOptions { device: Device::Cpu, threads: cores::available(), ..SessionOptions::default() };
        let (session, _) = session::start(graph, path, "", &options)?;
        let half = |kind: &ValueType| matches!(kind, ValueType::Tensor { ty: TensorElementType::Float16, .. });
        let half_input = session.inputs().iter().any(|input| half(input.dtype()));
        Ok(Self { session, half_input })
    }

    /// Every output of numbers, of pixels `[B, 3, H, W]`.
    ///
    /// # Errors
    /// [`ModelError::Run`].
    pub fn run(&mut self, pixels: ArrayView4<'_, f32>) -> Result<BTreeMap<String, ArrayD<f32>>, ModelError> {
        let outputs = session::run(&mut self.session, pixels, self.half_input)?;
        let float =
            |kind: &ValueType| matches!(kind, ValueType::Tensor { ty: TensorElementType::Float32 | TensorElementType::Float16, .. });
        outputs
            .iter()
            .filter(|(_, value)| float(value.dtype()))
            .map(|(name, value)| Ok((name.to_owned(), session::numbers(&value)?)))
            .collect()
    }
}
