//! The transform of a plain ONNX file: what lies beside it says, made to fit what the graph takes.

use std::path::Path;

use serde_json::Value as Json;

use crate::model::ModelError;
use crate::transform::{Resize, Transform};

/// File in which Hugging Face's tools keep the transform.
const PREPROCESSOR: &str = "preprocessor_config.json";
/// File in which timm keeps it.
const CONFIG: &str = "config.json";
/// Bytes that such a file may have; real ones have a few hundred, and a megabyte with the names of many classes.
const MOST_BYTES: u64 = 8 << 20;

/// A transform, and where it comes from in words.
pub(super) struct InputTransform {
    pub(super) transform: Transform,
    pub(super) origin: String,
}

impl InputTransform {
    /// Reads `preprocessor_config.json` or timm's `config.json` beside the file, or one folder up where transformers.js has them; else the
    /// transform that DINO is evaluated with.
    pub(super) fn find(path: &Path) -> Result<Self, ModelError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        // Only the folder `onnx` is part of a larger whole; what lies above other folders belongs to other programs.
        let above = folder.parent().filter(|_| folder.file_name().is_some_and(|name| name == "onnx"));
        let places: Vec<_> = [Some(folder), above].into_iter().flatten().collect();
        let candidates = [PREPROCESSOR, CONFIG].into_iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
        for file in candidates.filter(|file| file.is_file()) {
            let reject = |reason: String| ModelError::Graph { path: path.to_owned(), reason: format!("{}: {reason}", file.display()) };
            if fs_err::metadata(&file)?.len() > MOST_BYTES {
                return Err(reject(format!("it is longer than {} MiB", MOST_BYTES >> 20)));
            }
            let json: Json = serde_json::from_str(&fs_err::read_to_string(&file)?).map_err(|error| reject(error.to_string()))?;
            let read = if file.ends_with(PREPROCESSOR) { Some(Transform::from_preprocessor(&json)) } else { Transform::from_timm(&json) };
            if let Some(transform) = read {
                return Ok(Self { transform: transform.map_err(reject)?, origin: format!("from {}", file.display()) });
            }
        }
        let origin = format!("no {PREPROCESSOR} and no {CONFIG} of timm's found, so DINO's own");
        tracing::warn!(path = %path.display(), "nothing beside the file says how pictures are prepared: DINO's own way is assumed");
        Ok(Self { transform: Transform::evaluation(), origin })
    }

    /// (height, width) of the model's input. Crops to a square where the pictures would else differ in size.
    pub(super) fn size(&mut self) -> (u32, u32) {
        if let Resize::Shorter(side) = self.transform.resize
            && self.transform.crop.is_none()
        {
            self.transform.crop = Some((side, side));
            self.origin.push_str(", cropped to a square");
        }
        self.transform.output_size().expect("what has no crop has an exact size")
    }

    /// Makes the transform end in (height, width), which keeps its proportions where both are square.
    pub(super) fn end_in(&mut self, height: u32, width: u32) {
        let (was_height, was_width) = self.size();
        if (was_height, was_width) == (height, width) {
            return;
        }
        let transform = &mut self.transform;
        match transform.resize {
            Resize::Shorter(side) if was_height == was_width && height == width => {
                transform.resize = Resize::Shorter((f64::from(side) * f64::from(height) / f64::from(was_height)).round() as u32);
                transform.crop = Some((height, width));
            }
            _ => {
                transform.resize = Resize::Exact(height, width);
                transform.crop = None;
            }
        }
        let change = format!(", changed from {was_height}x{was_width} to the {height}x{width} that the graph takes");
        self.origin.push_str(&change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted() -> InputTransform {
        InputTransform { transform: Transform::evaluation(), origin: String::new() }
    }

    #[test]
    fn another_square_keeps_the_share_of_the_crop() {
        let mut fitted = fitted();
        fitted.end_in(518, 518);
        assert_eq!((fitted.transform.resize, fitted.transform.crop), (Resize::Shorter(592), Some((518, 518))));
        assert!(fitted.origin.contains("224x224 to the 518x518"), "{}", fitted.origin);
    }

    #[test]
    fn an_oblong_is_squeezed_and_the_same_size_changes_nothing() {
        let mut same = fitted();
        same.end_in(224, 224);
        assert_eq!((same.transform, same.origin.as_str()), (Transform::evaluation(), ""));
        let mut oblong = fitted();
        oblong.end_in(224, 112);
        assert_eq!((oblong.transform.resize, oblong.transform.crop), (Resize::Exact(224, 112), None));
    }

    #[test]
    fn pictures_of_all_shapes_are_cropped_to_one() {
        let mut open = fitted();
        open.transform.crop = None;
        assert_eq!(open.size(), (256, 256));
        assert_eq!(open.transform.crop, Some((256, 256)));
    }
}
