//! The evaluation transform of a checkpoint, where the user says it or nothing does.

use std::path::Path;

use dino_vision::transform::{Interpolation, Resize, Transform};

use super::Error;
use super::store::file_name;

/// Mean of the satellite pictures that DINOv3's `sat493m` weights were trained on.
const SATELLITE_MEAN: [f32; 3] = [0.430, 0.411, 0.296];
/// Standard deviation of those pictures.
const SATELLITE_STD: [f32; 3] = [0.213, 0.156, 0.143];

/// Settings of the transform that the user gives; the others stay as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TransformOptions {
    /// Length of the shorter side in pixels, before the crop.
    pub size: Option<u32>,
    /// Side of the central square that is cut out, in pixels.
    pub crop: Option<u32>,
    /// Mean of red, green and blue, pixels in 0..1.
    pub mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, pixels in 0..1.
    pub std: Option<[f32; 3]>,
    /// The resampling filter.
    pub interpolation: Option<Interpolation>,
}

impl TransformOptions {
    /// The transform that was `found` with these settings, and a note where one had to be assumed for `file`.
    pub(super) fn apply(&self, found: Option<Transform>, file: &Path) -> Result<(Transform, Option<String>), Error> {
        let is_assumed = found.is_none();
        let mut transform = found.unwrap_or_else(Transform::evaluation);
        let is_satellite = is_assumed && file_name(file).contains("sat493m");
        if is_satellite {
            (transform.mean, transform.std) = (SATELLITE_MEAN, SATELLITE_STD);
        }
        if let Some(size) = self.size {
            transform.resize = Resize::Shorter(size);
        }
        if let Some(crop) = self.crop {
            transform.crop = Some((crop, crop));
        }
        if let (Resize::Shorter(size), Some((height, width))) = (transform.resize, transform.crop)
            && height.max(width) > size
        {
            return Err(Error::Unsupported(format!(
                "a crop of {height} x {width} does not fit into a shorter side of {size} pixels: give --size {} or a smaller --crop",
                height.max(width)
            )));
        }
        transform.mean = self.mean.unwrap_or(transform.mean);
        transform.std = self.std.unwrap_or(transform.std);
        transform.interpolation = self.interpolation.unwrap_or(transform.interpolation);
        let note = (is_assumed && *self == Self::default()).then(|| {
            let what = if is_satellite { "DINOv3's for satellite pictures" } else { "DINO's for ImageNet" };
            format!("nothing beside the weights says how pictures are prepared: {what} is assumed (--size, --crop, --mean, --std and --interpolation change it)")
        });
        Ok((transform, note))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_replaces_what_was_found_and_the_rest_stays() {
        let found = Transform { mean: [0.1; 3], ..Transform::evaluation() };
        let options = TransformOptions { size: Some(518), crop: Some(518), std: Some([0.5; 3]), ..TransformOptions::default() };
        let (transform, note) = options.apply(Some(found.clone()), Path::new("a.pth")).unwrap();
        let expected = Transform { resize: Resize::Shorter(518), crop: Some((518, 518)), std: [0.5; 3], ..found };
        assert_eq!((transform, note), (expected, None));
    }

    #[test]
    fn what_is_assumed_is_said() {
        let assumed = |name: &str| TransformOptions::default().apply(None, Path::new(name)).unwrap();
        let (transform, note) = assumed("dino.pth");
        assert_eq!(transform, Transform::evaluation());
        assert!(note.unwrap().contains("--mean"));
        let (transform, note) = assumed("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth");
        assert_eq!(transform, Transform { mean: SATELLITE_MEAN, std: SATELLITE_STD, ..Transform::evaluation() });
        assert!(note.unwrap().contains("satellite"));
    }

    #[test]
    fn a_crop_larger_than_the_picture_is_refused() {
        let options = TransformOptions { crop: Some(300), ..TransformOptions::default() };
        assert!(options.apply(None, Path::new("a.pth")).unwrap_err().to_string().contains("--size 300"));
    }
}
