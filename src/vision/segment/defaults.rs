//! How masks of a model are best made: what `/segment` does where a request names no method.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Method, Options, Refine};
use crate::transform::MOST_SIDE;

/// A method with its settings, and the figures that say so. `dino-train segment-eval --recommend` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MaskDefaults {
    /// How objects are found.
    pub method: Method,
    /// Length in pixels that the longer side of a picture gets before the model sees it.
    #[schemars(range(min = 1, max = MOST_SIDE))]
    pub size: u32,
    /// Where the method cuts; absent for its own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// What is done to the borders.
    pub refine: Refine,
    /// What was measured; absent where the settings are taken from a publication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figures: Option<MaskFigures>,
}

/// How well the first mask of each picture fits the one that people drew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MaskFigures {
    /// Pictures with masks.
    pub pictures: usize,
    /// Mean intersection over union, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub jaccard: f64,
    /// The same of a box in the middle, half as wide and half as high as the picture.
    #[schemars(range(min = 0, max = 100))]
    pub centred_box: f64,
    /// The same of attention at 480 pixels, the default of models without a measurement; absent without attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub attention: Option<f64>,
}

impl MaskDefaults {
    /// Refuses settings that cannot be followed: the field, and why.
    pub(crate) fn check(&self, heads: usize) -> Result<(), (&'static str, String)> {
        if !(1..=MOST_SIDE).contains(&self.size) {
            return Err(("segment.size", format!("is {}; known are 1 to {MOST_SIDE}", self.size)));
        }
        let options = Options { method: self.method, threshold: self.threshold, ..Options::default() };
        options.check(heads).map_err(|error| ("segment.threshold", format!("is of no use: {error}")))
    }
}
