//! An ONNX session as the queue's engine.

use ndarray::{Array, ArrayView4, Axis, Dimension, RemoveAxis};

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
        Ok(if count == 1 { vec![outputs] } else { (0..count).map(|index| one(&outputs, index)).collect() })
    }
}

/// The outputs of one picture of a batch, as a batch of one.
fn one(outputs: &Outputs, index: usize) -> Outputs {
    Outputs {
        last_hidden_state: part(outputs.last_hidden_state.as_ref(), index),
        attention: part(outputs.attention.as_ref(), index),
        keys: part(outputs.keys.as_ref(), index),
        embedding: part(outputs.embedding.as_ref(), index),
        feature_map: part(outputs.feature_map.as_ref(), index),
        last_blocks: part(outputs.last_blocks.as_ref(), index),
    }
}

fn part<D: Dimension + RemoveAxis>(output: Option<&Array<f32, D>>, index: usize) -> Option<Array<f32, D>> {
    output.map(|array| array.select(Axis(0), &[index]))
}
