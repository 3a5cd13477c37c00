//! The evaluation transform that Hugging Face's `preprocessor_config.json` describes.

use dino_server::transform::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, Resize, Transform};
use serde_json::Value as Json;

/// The transform of DINO's evaluation code: shorter side 256, bicubic, the centre 224 x 224, `ImageNet`'s mean and deviation.
pub(crate) fn evaluation() -> Transform {
    Transform {
        resize: Resize::Shorter(256),
        crop: Some((224, 224)),
        interpolation: Interpolation::Bicubic,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
    }
}

/// Reads `preprocessor_config.json`. The error says which setting is not understood.
pub(crate) fn from_preprocessor(json: &Json) -> Result<Transform, String> {
    if json["do_resize"] == Json::Bool(false) {
        return Err("do_resize is false; the model needs pictures of a known size".to_owned());
    }
    let size = &json["size"];
    let resize = if let Some(side) = side(&size["shortest_edge"]) {
        Resize::Shorter(side)
    } else {
        let (height, width) = sides(size).ok_or_else(|| format!("size is {size}"))?;
        Resize::Exact(height, width)
    };
    let crop = &json["crop_size"];
    let crops = json["do_center_crop"].as_bool().unwrap_or(!crop.is_null());
    let crop = crops.then(|| sides(crop).ok_or_else(|| format!("crop_size is {crop}"))).transpose()?;
    let resample = &json["resample"];
    let interpolation = match resample.as_u64() {
        Some(1) => Interpolation::Lanczos,
        Some(2) => Interpolation::Bilinear,
        Some(3) => Interpolation::Bicubic,
        _ => {
            return Err(format!("resample is {resample}, known are 1 (Lanczos), 2 (bilinear) and 3 (bicubic)"));
        }
    };
    let factor = json["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
    if json["do_rescale"] == Json::Bool(false) || (factor * 255.0 - 1.0).abs() > 1e-6 {
        return Err("pixels are not scaled by 1/255".to_owned());
    }
    let (mean, std) = if json["do_normalize"] == Json::Bool(false) {
        ([0.0; 3], [1.0; 3])
    } else {
        let three = |key: &str| three(&json[key]).ok_or_else(|| format!("{key} is {}", json[key]));
        (three("image_mean")?, three("image_std")?)
    };
    if std.iter().any(|deviation| *deviation <= 0.0) {
        return Err(format!("image_std is {std:?}"));
    }
    Ok(Transform { resize, crop, interpolation, mean, std })
}

/// A length in pixels.
fn side(json: &Json) -> Option<u32> {
    json.as_u64().and_then(|side| u32::try_from(side).ok()).filter(|side| *side > 0)
}

/// `{"height", "width"}`, or one number for both.
fn sides(json: &Json) -> Option<(u32, u32)> {
    match side(json) {
        Some(side) => Some((side, side)),
        None => Some((side(&json["height"])?, side(&json["width"])?)),
    }
}

fn three(json: &Json) -> Option<[f32; 3]> {
    let values = json.as_array()?.iter().map(Json::as_f64).collect::<Option<Vec<_>>>()?;
    let [r, g, b] = values.as_slice() else {
        return None;
    };
    Some([*r as f32, *g as f32, *b as f32])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Json {
        json!({
            "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 192}, "do_center_crop": true,
            "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        })
    }

    #[test]
    fn shorter_side_and_crop() {
        assert_eq!(from_preprocessor(&base()).unwrap(), Transform { crop: Some((224, 192)), ..evaluation() });
    }

    #[test]
    fn exact_size_without_a_crop() {
        let mut json = base();
        json["size"] = json!({"height": 224, "width": 112});
        json["do_center_crop"] = json!(false);
        json["resample"] = json!(2);
        let transform = from_preprocessor(&json).unwrap();
        assert_eq!(transform.resize, Resize::Exact(224, 112));
        assert_eq!(transform.crop, None);
        assert_eq!(transform.interpolation, Interpolation::Bilinear);
    }

    #[test]
    fn settings_that_are_not_understood_are_named() {
        for (key, value) in [
            ("resample", json!(0)),
            ("size", json!({"longest_edge": 5})),
            ("rescale_factor", json!(0.5)),
            ("image_std", json!([0.0, 1.0, 1.0])),
            ("image_mean", json!([0.5])),
            ("do_resize", json!(false)),
        ] {
            let mut json = base();
            json[key] = value;
            let error = from_preprocessor(&json).unwrap_err();
            assert!(error.contains(key) || key == "rescale_factor", "{key}: {error}");
        }
    }
}
