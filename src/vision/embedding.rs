//! Model outputs to embeddings: pooling, normalising, cutting.
//!
//! Embeddings travel as `[pictures, rows, D]`: one row per picture, or one per patch with [`Pooling::Patches`].
//!
//! ```
//! use dino_vision::embedding::{Pooling, normalise, pool};
//! use dino_vision::model::Outputs;
//!
//! // One picture: CLS and four patches, three numbers each.
//! let tokens = ndarray::Array3::from_shape_fn((1, 5, 3), |(_, token, _)| token as f32);
//! let outputs = Outputs { last_hidden_state: Some(tokens), ..Outputs::default() };
//! let mut mean = pool(&outputs, 0, Pooling::Mean)?;
//! assert_eq!(mean.as_slice(), Some([2.5, 2.5, 2.5].as_slice()));
//! normalise(&mut mean);
//! assert!((mean.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-6);
//! # Ok::<(), dino_vision::embedding::EmbeddingError>(())
//! ```

use ndarray::{Array3, ArrayView3, Axis, concatenate, s};

use crate::model::Outputs;
pub use crate::pooling::{Pooling, UnknownOption};
use crate::unit_rows;

/// Why there is no embedding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbeddingError {
    /// The model's graph does not compute what the pooling needs.
    #[error("pooling {pooling} needs the output `{output}`, which this model does not have")]
    LacksOutput {
        /// What was asked for.
        pooling: Pooling,
        /// Name of the ONNX output.
        output: &'static str,
    },
    /// The model's graph does not give the tokens of this block.
    #[error("layer {layer} is not among what this model gives ({}); export it with `dino-train export --layers {layer}`", listed(layers))]
    LacksLayer {
        /// Number of the block, from 1.
        layer: u32,
        /// Those that it gives beside the last one.
        layers: Vec<u32>,
    },
    /// An option's value is not one of those known.
    #[error(transparent)]
    Unknown(#[from] UnknownOption),
    /// `dimensions` is zero or more than there are.
    #[error("dimensions must be between 1 and {dim}, not {dimensions}")]
    Dimensions {
        /// What was asked for.
        dimensions: usize,
        /// Length of the uncut embedding.
        dim: usize,
    },
}

/// Numbers of blocks, in words.
fn listed(layers: &[u32]) -> String {
    let numbers: Vec<_> = layers.iter().map(|layer| format!("{layer}, ")).collect();
    format!("{}the last one", numbers.concat())
}

/// `[B, rows, D]`: the pooled tokens of each picture, not yet normalised.
///
/// `registers` is the number of register tokens between CLS and the patches (see
/// [`Manifest::registers`](crate::model::Manifest::registers)). A model with `embedding` and `feature_map` (a ResNet)
/// answers every pooling as well: its cells are its patches.
///
/// # Errors
/// [`EmbeddingError::LacksOutput`].
pub fn pool(outputs: &Outputs, registers: usize, pooling: Pooling) -> Result<Array3<f32>, EmbeddingError> {
    pool_tokens(outputs.last_hidden_state.as_ref(), outputs, registers, pooling)
}

/// The same of the tokens after block `layer`, from 1; `None` is the last block.
///
/// # Errors
/// [`EmbeddingError::LacksOutput`] and [`EmbeddingError::LacksLayer`].
pub fn pool_layer(outputs: &Outputs, layer: Option<u32>, registers: usize, pooling: Pooling) -> Result<Array3<f32>, EmbeddingError> {
    let Some(layer) = layer else { return pool(outputs, registers, pooling) };
    let layers = || outputs.layers.keys().copied().collect();
    let tokens = outputs.layers.get(&layer).ok_or_else(|| EmbeddingError::LacksLayer { layer, layers: layers() })?;
    pool_tokens(Some(tokens), outputs, registers, pooling)
}

fn pool_tokens(tokens: Option<&Array3<f32>>, outputs: &Outputs, registers: usize, pooling: Pooling) -> Result<Array3<f32>, EmbeddingError> {
    let lacks = |output| EmbeddingError::LacksOutput { pooling, output };
    let patches = || match (tokens, &outputs.feature_map) {
        (Some(tokens), _) => Ok(tokens.slice(s![.., 1 + registers.., ..]).to_owned()),
        (None, Some(map)) => {
            let (batch, dim, height, width) = map.dim();
            let cells = map.view().permuted_axes([0, 2, 3, 1]).as_standard_layout().into_owned();
            Ok(cells.into_shape_with_order((batch, height * width, dim)).expect("standard layout"))
        }
        (None, None) => Err(lacks("last_hidden_state")),
    };
    // An input of at least one patch has a mean.
    let mean = || patches().map(|patches| mean_row(patches.view()));
    let cls = || match (tokens, &outputs.embedding) {
        (Some(tokens), _) => Ok(tokens.slice(s![.., ..1, ..]).to_owned()),
        (None, Some(embedding)) => Ok(embedding.clone().insert_axis(Axis(1))),
        // A feature map that others exported alone: a residual network pools it by its mean.
        (None, None) => mean(),
    };
    match pooling {
        Pooling::Cls => cls(),
        Pooling::Mean => mean(),
        Pooling::ClsMean => Ok(concatenate![Axis(2), cls()?, mean()?]),
        Pooling::Patches => patches(),
    }
}

/// `[B, 1, D]`: the mean over the rows. Without rows it is zero, never NaN.
fn mean_row(rows: ArrayView3<'_, f32>) -> Array3<f32> {
    let count = rows.len_of(Axis(1)).max(1) as f32;
    (rows.sum_axis(Axis(1)) / count).insert_axis(Axis(1))
}

/// Scales every row to length 1, in place; a row of zeros stays as it is.
pub fn normalise(rows: &mut Array3<f32>) {
    /// Below this length a row counts as zero, as in PyTorch's `normalize`.
    const SMALLEST: f32 = 1e-12;

    for mut row in rows.rows_mut() {
        let length = unit_rows::length(&row) as f32;
        row /= length.max(SMALLEST);
    }
}

/// The first `dimensions` numbers of every row. Normalise afterwards, not before: a cut row is shorter than 1.
///
/// # Errors
/// [`EmbeddingError::Dimensions`].
pub fn cut(rows: &Array3<f32>, dimensions: usize) -> Result<Array3<f32>, EmbeddingError> {
    let dim = rows.len_of(Axis(2));
    if !(1..=dim).contains(&dimensions) {
        return Err(EmbeddingError::Dimensions { dimensions, dim });
    }
    Ok(rows.slice(s![.., .., ..dimensions]).to_owned())
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, Array4, array};

    use super::{EmbeddingError, Pooling, cut, normalise, pool, pool_layer};
    use crate::model::Outputs;

    /// One picture: CLS 1, a register 100, and patches 2 and 4 (first number; the second is ten times that).
    fn vit() -> Outputs {
        let tokens = array![[[1.0, 10.0], [100.0, 1000.0], [2.0, 20.0], [4.0, 40.0]]];
        Outputs { last_hidden_state: Some(tokens), ..Outputs::default() }
    }

    #[test]
    fn a_layer_is_pooled_as_the_last_one_is() {
        let mut outputs = vit();
        let halves = outputs.last_hidden_state.as_ref().unwrap() / 2.0;
        outputs.layers.insert(3, halves);
        for pooling in [Pooling::Cls, Pooling::Mean, Pooling::ClsMean, Pooling::Patches] {
            let (last, third) = (pool(&outputs, 1, pooling).unwrap(), pool_layer(&outputs, Some(3), 1, pooling).unwrap());
            assert_eq!(last / 2.0, third);
            assert_eq!(pool_layer(&outputs, None, 1, pooling), pool(&outputs, 1, pooling));
        }
        let error = pool_layer(&outputs, Some(2), 1, Pooling::Cls).unwrap_err();
        assert_eq!(error, EmbeddingError::LacksLayer { layer: 2, layers: vec![3] });
        assert!(error.to_string().contains("(3, the last one); export it with `dino-train export --layers 2`"), "{error}");
    }

    #[test]
    fn poolings_take_their_tokens_and_leave_registers_out() {
        let pooled = |pooling| pool(&vit(), 1, pooling).unwrap();
        assert_eq!(pooled(Pooling::Cls), array![[[1.0, 10.0]]]);
        assert_eq!(pooled(Pooling::Mean), array![[[3.0, 30.0]]]);
        assert_eq!(pooled(Pooling::ClsMean), array![[[1.0, 10.0, 3.0, 30.0]]]);
        assert_eq!(pooled(Pooling::Patches), array![[[2.0, 20.0], [4.0, 40.0]]]);
    }

    #[test]
    fn a_resnet_answers_every_pooling_with_its_cells_row_by_row() {
        let map = Array4::from_shape_vec((1, 2, 1, 2), vec![1.0, 3.0, 10.0, 30.0]).unwrap();
        let resnet = Outputs { embedding: Some(array![[2.0, 20.0]]), feature_map: Some(map), ..Outputs::default() };
        let pooled = |pooling| pool(&resnet, 0, pooling).unwrap();
        assert_eq!(pooled(Pooling::Cls), array![[[2.0, 20.0]]]);
        assert_eq!(pooled(Pooling::Mean), array![[[2.0, 20.0]]]);
        assert_eq!(pooled(Pooling::Patches), array![[[1.0, 10.0], [3.0, 30.0]]]);
    }

    #[test]
    fn a_model_without_the_output_says_which() {
        let embedding = Outputs { embedding: Some(Array2::zeros((1, 2))), ..Outputs::default() };
        let error = pool(&embedding, 0, Pooling::Mean).unwrap_err();
        assert_eq!(error, EmbeddingError::LacksOutput { pooling: Pooling::Mean, output: "last_hidden_state" });
        assert!(pool(&embedding, 0, Pooling::Cls).is_ok());
    }

    #[test]
    fn rows_get_length_one_and_zeros_stay_zeros() {
        let mut rows: Array3<f32> = array![[[3.0, 4.0], [0.0, 0.0]]];
        normalise(&mut rows);
        assert_eq!(rows, array![[[0.6, 0.8], [0.0, 0.0]]]);
    }

    #[test]
    fn cut_rows_are_short_until_normalised_again() {
        let rows: Array3<f32> = array![[[0.6, 0.0, 0.8]]];
        let mut short = cut(&rows, 2).unwrap();
        assert_eq!(short, array![[[0.6, 0.0]]]);
        normalise(&mut short);
        assert_eq!(short, array![[[1.0, 0.0]]]);
        assert!(cut(&rows, 0).is_err() && cut(&rows, 4).is_err());
    }

    #[test]
    fn names_parse_back() {
        for name in ["cls", "mean", "cls_mean", "patches"] {
            assert_eq!(name.parse::<Pooling>().unwrap().to_string(), name);
        }
        assert!("CLS".parse::<Pooling>().unwrap_err().to_string().contains("cls, mean"));
    }
}
