//! Pixels to the model's input, as its manifest says.

use image::RgbImage;
use ndarray::Array3;
use serde::{Deserialize, Serialize};

/// How a picture is brought to the model's size before it is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The shorter side gets this length, the aspect ratio is kept.
    Shorter(u32),
    /// Both sides are set (height, width), the aspect ratio is not kept.
    Exact(u32, u32),
}

/// The resampling filter, as Pillow defines it (antialiased).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle filter.
    Bilinear,
    /// Cubic filter with a = -0.5.
    Bicubic,
    /// Lanczos filter with three lobes.
    Lanczos,
}

/// The evaluation transform of a model, stored in its manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// First step.
    pub resize: Resize,
    /// Then the centre (height, width) is kept; `null` keeps everything.
    pub crop: Option<(u32, u32)>,
    /// Filter of the first step.
    pub interpolation: Interpolation,
    /// Mean per channel of pixels in 0..1.
    pub mean: [f32; 3],
    /// Standard deviation per channel of pixels in 0..1.
    pub std: [f32; 3],
}

impl Transform {
    /// Resized and cropped pixels, before normalisation.
    pub fn pixels(&self, _picture: &RgbImage) -> RgbImage {
        todo!()
    }

    /// `[3, height, width]`, normalised.
    pub fn apply(&self, picture: &RgbImage) -> Array3<f32> {
        self.normalise(&self.pixels(picture))
    }

    /// `[3, height, width]`: (pixel / 255 - mean) / std.
    pub fn normalise(&self, _pixels: &RgbImage) -> Array3<f32> {
        todo!()
    }
}
