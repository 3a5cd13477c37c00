//! What a model saw of one picture, patch by patch: the input of every method.

use ndarray::{ArrayView2, Axis, CowArray, Ix2, s};

use super::SegmentError;
use crate::model::Outputs;
use crate::transform::PatchGrid;

/// A model's outputs for one picture, on its patch grid. Which of them a model has decides which methods it can serve.
pub struct Patches<'a> {
    grid: PatchGrid,
    attention: Option<ArrayView2<'a, f32>>,
    keys: Option<ArrayView2<'a, f32>>,
    features: Option<CowArray<'a, f32, Ix2>>,
}

impl<'a> Patches<'a> {
    /// The first picture of a batch's outputs. `grid` is the model's input in whole patches; a ResNet's is that of
    /// its feature map.
    pub fn of(outputs: &'a Outputs, grid: PatchGrid) -> Self {
        let count = grid.len();
        // CLS and registers, if any, come first.
        let patches = |tokens: ArrayView2<'a, f32>, axis: usize| {
            let first = tokens.len_of(Axis(axis)).checked_sub(count)?;
            Some(tokens.split_at(Axis(axis), first).1)
        };
        let attention = outputs.attention.as_ref().and_then(|batch| patches(batch.index_axis(Axis(0), 0), 1));
        let keys = outputs.keys.as_ref().and_then(|batch| patches(batch.index_axis(Axis(0), 0), 0));
        let tokens = || outputs.last_hidden_state.as_ref().and_then(|batch| patches(batch.index_axis(Axis(0), 0), 0));
        if let Some(features) = keys.or_else(tokens) {
            return Self { grid, attention, keys, features: Some(features.into()) };
        }
        let Some(map) = &outputs.feature_map else {
            return Self { grid, attention, keys, features: None };
        };
        let (_, dim, rows, columns) = map.dim();
        let flat = map.slice(s![0, .., .., ..]).permuted_axes([1, 2, 0]).as_standard_layout().into_owned();
        let features = flat.into_shape_with_order((rows * columns, dim)).ok().map(CowArray::from);
        Self { grid: PatchGrid { rows, columns }, attention: None, keys: None, features }
    }

    /// Patches made elsewhere: `attention` `[heads, patches]`, `keys` `[patches, D]`, heads side by side.
    ///
    /// # Panics
    /// If either has not the grid's number of patches.
    pub fn new(attention: Option<ArrayView2<'a, f32>>, keys: Option<ArrayView2<'a, f32>>, grid: PatchGrid) -> Self {
        assert!(attention.is_none_or(|attention| attention.len_of(Axis(1)) == grid.len()), "one column per patch");
        assert!(keys.is_none_or(|keys| keys.len_of(Axis(0)) == grid.len()), "one row per patch");
        Self { grid, attention, keys, features: keys.map(CowArray::from) }
    }

    /// Features `[patches, D]` made elsewhere, that are no keys.
    ///
    /// # Panics
    /// If they are not as many as the grid has patches.
    pub fn of_features(features: ArrayView2<'a, f32>, grid: PatchGrid) -> Self {
        assert_eq!(features.nrows(), grid.len(), "one row per patch");
        Self { grid, attention: None, keys: None, features: Some(features.into()) }
    }

    /// Rows and columns of the patches.
    pub fn grid(&self) -> PatchGrid {
        self.grid
    }

    /// `[heads, patches]`: the last block's CLS row.
    ///
    /// # Errors
    /// [`SegmentError::LacksOutput`].
    pub fn attention(&self) -> Result<ArrayView2<'_, f32>, SegmentError> {
        self.attention.ok_or(SegmentError::LacksOutput("attention"))
    }

    /// `[patches, D]`: the last block's keys.
    ///
    /// # Errors
    /// [`SegmentError::LacksOutput`].
    pub fn keys(&self) -> Result<ArrayView2<'_, f32>, SegmentError> {
        self.keys.ok_or(SegmentError::LacksOutput("keys"))
    }

    /// `[patches, D]`: the keys, else the tokens after the final norm, else a ResNet's feature map.
    ///
    /// # Errors
    /// [`SegmentError::LacksOutput`].
    pub fn features(&self) -> Result<ArrayView2<'_, f32>, SegmentError> {
        self.features.as_ref().map(|features| features.view()).ok_or(SegmentError::LacksOutput("keys"))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, Array4};

    use super::Patches;
    use crate::model::Outputs;
    use crate::segment::SegmentError;
    use crate::transform::PatchGrid;

    const GRID: PatchGrid = PatchGrid { rows: 2, columns: 3 };

    #[test]
    fn tokens_before_the_patches_are_left_out() {
        let tokens = Array3::from_shape_fn((1, 11, 4), |(_, token, _)| token as f32);
        let attention = Array3::from_shape_fn((1, 2, 11), |(_, _, token)| token as f32);
        let outputs = Outputs { last_hidden_state: Some(tokens), attention: Some(attention), ..Outputs::default() };
        let patches = Patches::of(&outputs, GRID);
        assert_eq!(patches.features().unwrap().column(0).to_vec(), [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(patches.attention().unwrap().row(1).to_vec(), [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(patches.keys().unwrap_err(), SegmentError::LacksOutput("keys"));
    }

    #[test]
    fn a_feature_map_is_read_row_by_row() {
        let map = Array4::from_shape_fn((1, 5, 2, 3), |(_, channel, row, column)| (channel * 100 + row * 10 + column) as f32);
        let outputs = Outputs { feature_map: Some(map), ..Outputs::default() };
        let patches = Patches::of(&outputs, PatchGrid { rows: 9, columns: 9 });
        assert_eq!(patches.grid(), GRID);
        assert_eq!(patches.features().unwrap().row(4).to_vec(), [11.0, 111.0, 211.0, 311.0, 411.0]);
        assert!(Patches::of(&Outputs::default(), GRID).features().is_err());
    }
}
