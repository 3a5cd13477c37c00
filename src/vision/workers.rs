//! An ONNX session as the queue's engine.

use ndarray::{ArrayView4, Axis};

use crate::{
    batch::{Engine, EngineError},
    model::{ModelError, Outputs, Session},
};

/// A session that runs batches of pictures.
pub struct SessionEngine(pub Session);

impl Engine for SessionEngine {
    /// Outputs with B = 1.
    type Output = Outputs;

    fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<Outputs>, EngineError> {
        let count = pictures.len_of(Axis(0));
        let outputs = self.0.run(pictures).map_err(|error| match error {
            // Whoever reports it says that the model failed.
            ModelError::Run(reason) => EngineError(reason),
            other => EngineError(other.to_string()),
        })?;
        Ok(if count == 1 { vec![outputs] } else { (0..count).map(|index| outputs.of(index..index + 1)).collect() })
    }
}
