//! Linear heads over all patches of a picture: the class of each pixel ([`segmentation`]), and how far away it is ([`depth`]).
//!
//! A head gives each patch logits, which are enlarged bilinearly ([`enlarge`]) to the picture. What was batch norm in training is
//! part of the head's weights here. The heads are those of DINOv2's evaluation (Oquab et al. 2023, section 7.4): one 1x1
//! convolution on the last block's patch tokens.
//!
//! ```
//! use dino_vision::dense::{features, segmentation::ClassMap};
//! use dino_vision::head::Task;
//! use dino_vision::model::Outputs;
//! use dino_vision::transform::PatchGrid;
//! use ndarray::{Array3, array};
//!
//! // CLS and a row of two patches, two numbers each.
//! let tokens = Array3::from_shape_vec((1, 3, 2), vec![9.0, 9.0, 1.0, 0.0, 0.0, 1.0])?;
//! let outputs = Outputs { last_hidden_state: Some(tokens), ..Outputs::default() };
//! let (patches, grid) = features(Task::Segmentation, &outputs, 0, PatchGrid { rows: 1, columns: 2 })?;
//!
//! // A head that takes the first number for class 0, and the second for class 1.
//! let logits = patches.dot(&array![[1.0, 0.0], [0.0, 1.0]]);
//! let classes = ClassMap::new(logits.view(), grid, PatchGrid { rows: 1, columns: 4 }).classes;
//! assert_eq!(classes, [0, 0, 1, 1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod depth;
pub mod enlarge;
pub mod segmentation;

use ndarray::{Array2, Axis, concatenate};

use crate::embedding::{self, EmbeddingError, Pooling};
use crate::head::Task;
use crate::model::Outputs;
use crate::transform::PatchGrid;

/// `[patches, F]`: the features that a dense head sees of the one picture in `outputs`, and their grid. `registers` is the model's
/// number of register tokens, `grid` its input in whole patches; a convolutional network's is that of its feature map.
/// With [`Task::Depth`] CLS stands beside each patch token.
///
/// # Errors
/// [`EmbeddingError::LacksOutput`].
pub fn features(task: Task, outputs: &Outputs, registers: usize, grid: PatchGrid) -> Result<(Array2<f32>, PatchGrid), EmbeddingError> {
    let patches = embedding::pool(outputs, registers, Pooling::Patches)?.index_axis_move(Axis(0), 0);
    let grid = match (&outputs.last_hidden_state, &outputs.feature_map) {
        (None, Some(map)) => PatchGrid { rows: map.dim().2, columns: map.dim().3 },
        _ => grid,
    };
    if task != Task::Depth {
        return Ok((patches, grid));
    }
    let cls = embedding::pool(outputs, registers, Pooling::Cls)?.index_axis_move(Axis(0), 0);
    let dim = cls.len();
    let cls = cls.into_shape_with_order((1, dim)).expect("one row");
    let cls = cls.broadcast((patches.nrows(), dim)).expect("one row for all");
    Ok((concatenate![Axis(1), patches, cls], grid))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn depth_sees_cls_beside_each_patch() {
        let outputs = Outputs { last_hidden_state: Some(array![[[5.0], [100.0], [1.0], [3.0]]]), ..Outputs::default() };
        let grid = PatchGrid { rows: 1, columns: 2 };
        assert_eq!(features(Task::Segmentation, &outputs, 1, grid).unwrap(), (array![[1.0], [3.0]], grid));
        assert_eq!(features(Task::Depth, &outputs, 1, grid).unwrap().0, array![[1.0, 5.0], [3.0, 5.0]]);
        assert!(features(Task::Depth, &Outputs::default(), 0, grid).is_err());
    }
}
