//! How masks of a model are best made: what `/segment` does where a request names no method.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::transform::MOST_SIDE;

/// How objects are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MaskMethod")]
pub enum Method {
    /// The patches that hold most of the CLS token's attention (DINO).
    #[default]
    Attention,
    /// What does not resemble the patch with the least attention (FOUND's seed).
    Background,
    /// The normalised cut of the patches (TokenCut).
    Ncut,
    /// What grows from the patch with the fewest similar ones (LOST).
    Lost,
    /// One side of the first principal component.
    Pca,
    /// What lies towards the middle and does not resemble the border.
    Saliency,
}

impl Method {
    /// All of them, the default first.
    pub const ALL: [Self; 6] = [Self::Attention, Self::Background, Self::Ncut, Self::Lost, Self::Pca, Self::Saliency];

    /// Its name in requests and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Background => "background",
            Self::Ncut => "ncut",
            Self::Lost => "lost",
            Self::Pca => "pca",
            Self::Saliency => "saliency",
        }
    }

    /// The threshold where none is given: the papers' values. Attention: the share of its mass that is kept. Background and
    /// ncut: the cosine above which patches are similar. Lost: the least correlation with the seed, whose own is 1. Pca:
    /// where the first component is cut, in standard deviations. Saliency: where the heat is cut, as a multiple of Otsu's cut.
    pub fn default_threshold(self) -> f32 {
        match self {
            Self::Attention => 0.6,
            Self::Background => 0.3,
            Self::Ncut => 0.2,
            Self::Lost | Self::Pca => 0.0,
            Self::Saliency => 1.0,
        }
    }

    /// The thresholds that the method can cut at.
    pub(crate) fn thresholds(self) -> Thresholds {
        let (least, most, is_least_one) = match self {
            Self::Attention => (0.0, 1.0, false),
            Self::Background | Self::Ncut | Self::Lost => (-1.0, 1.0, true),
            Self::Pca => (-100.0, 100.0, true),
            Self::Saliency => (0.0, 100.0, false),
        };
        Thresholds { least, most, is_least_one }
    }
}

/// A range of numbers, and the words for it.
pub(crate) struct Thresholds {
    least: f32,
    most: f32,
    /// Whether `least` is in the range.
    is_least_one: bool,
}

impl Thresholds {
    /// Whether it is one of them; what is no number is not.
    pub(crate) fn contains(&self, threshold: f32) -> bool {
        (threshold > self.least || self.is_least_one && threshold >= self.least) && threshold <= self.most
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, is_least_one } = self;
        if *is_least_one { write!(formatter, "between {least} and {most}") } else { write!(formatter, "above {least} and at most {most}") }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What is done to the borders of masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refine {
    /// They lie along patches.
    #[default]
    None,
    /// They follow the picture's edges.
    Guided,
}

impl Refine {
    /// Both.
    pub const ALL: [Self; 2] = [Self::None, Self::Guided];
}

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
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if !(1..=MOST_SIDE).contains(&self.size) {
            return Err(("segment.size", format!("is {}; known are 1 to {MOST_SIDE}", self.size)));
        }
        let (method, threshold) = (self.method, self.threshold.unwrap_or_else(|| self.method.default_threshold()));
        let known = method.thresholds();
        if !known.contains(threshold) {
            return Err(("segment.threshold", format!("is {threshold}; known for method {method} are those {known}")));
        }
        Ok(())
    }
}
