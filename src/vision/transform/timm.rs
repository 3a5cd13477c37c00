//! The transform that timm's `config.json` describes.

use serde_json::Value as Json;

use super::preprocessor::{side, three};
use super::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, MOST_SIDE, Resize, Transform};

/// Side of a network's input where nothing says it.
const USUAL_SIDE: u32 = 224;
/// Share of the shorter side that is cut out where nothing says it.
const USUAL_SHARE: f64 = 0.875;

impl Transform {
    /// Reads timm's `pretrained_cfg` from its `config.json`; none where there is no such thing.
    ///
    /// # Errors
    /// Which setting is not understood, in words.
    pub fn from_timm(config: &Json) -> Option<Result<Self, String>> {
        let nested = &config["pretrained_cfg"];
        let says = |key: &&str| !nested[*key].is_null();
        if nested.is_object() && ["input_size", "mean", "std", "crop_pct", "interpolation"].iter().any(says) {
            return Some(timm(nested));
        }
        config["input_size"].is_array().then(|| timm(config))
    }
}

/// timm's evaluation transform: the shorter side is the input's by `crop_pct`, then the centre is cut out.
fn timm(settings: &Json) -> Result<Transform, String> {
    let (height, width) = match &settings["input_size"] {
        Json::Null => (USUAL_SIDE, USUAL_SIDE),
        json => match json.as_array().map(Vec::as_slice) {
            Some([_, height, width]) => side(height).zip(side(width)),
            _ => None,
        }
        .ok_or_else(|| format!("input_size is {json}; three numbers are expected, sides are 1 to {MOST_SIDE} pixels"))?,
    };
    let share = match &settings["crop_pct"] {
        Json::Null => USUAL_SHARE,
        json => {
            json.as_f64().filter(|share| (0.1..=1.0).contains(share)).ok_or_else(|| format!("crop_pct is {json}, known are 0.1 to 1"))?
        }
    };
    let interpolation = match &settings["interpolation"] {
        Json::Null => Interpolation::Bicubic,
        json => match json.as_str() {
            Some("bicubic") => Interpolation::Bicubic,
            Some("bilinear") => Interpolation::Bilinear,
            Some("lanczos") => Interpolation::Lanczos,
            _ => return Err(format!("interpolation is {json}, known are bicubic, bilinear and lanczos")),
        },
    };
    let scaled = |side: u32| (f64::from(side) / share).floor() as u32;
    let mode = &settings["crop_mode"];
    let (resize, crop) = match mode.as_str().or(mode.is_null().then_some("center")) {
        Some("center") if height == width => (Resize::Shorter(scaled(height)), Some((height, width))),
        // An oblong input: both sides are set, as timm does.
        Some("center" | "squash") => (Resize::Exact(scaled(height), scaled(width)), Some((height, width))),
        _ => return Err(format!("crop_mode is {mode}, known are center and squash")),
    };
    let numbers = |key: &str, usual: [f32; 3]| match &settings[key] {
        Json::Null => Ok(usual),
        json => three(json).map(|numbers| numbers.map(|number| number as f32)).ok_or_else(|| format!("{key} is {json}")),
    };
    let mean = numbers("mean", IMAGENET_MEAN)?;
    if !mean.iter().all(|mean| (0.0..=1.0).contains(mean)) {
        return Err(format!("mean is {mean:?}, of pixels in 0 to 1"));
    }
    let std = numbers("std", IMAGENET_STD)?;
    Ok(Transform { resize, crop, interpolation, mean, std: positive(std).ok_or_else(|| format!("std is {std:?}"))? })
}

/// Deviations, where each can be divided by.
pub(super) fn positive(std: [f32; 3]) -> Option<[f32; 3]> {
    std.iter().all(|deviation| deviation.is_normal() && *deviation > 0.0).then_some(std)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn timms_settings_are_read() {
        let json = json!({"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": {
            "input_size": [3, 518, 518], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}});
        let transform = Transform::from_timm(&json).unwrap().unwrap();
        let expected = Transform {
            resize: Resize::Shorter(518),
            crop: Some((518, 518)),
            mean: [0.5; 3],
            std: [0.25; 3],
            interpolation: Interpolation::Bicubic,
        };
        assert_eq!(transform, expected);
        // 224 / 0.9 is 248.9, of which timm takes the whole part.
        let share = json!({"input_size": [3, 224, 224], "crop_pct": 0.9});
        assert_eq!(Transform::from_timm(&share).unwrap().unwrap().resize, Resize::Shorter(248));
        assert!(Transform::from_timm(&json!({"hidden_size": 384})).is_none());
        // H-optimus says neither the crop nor the filter.
        let short = json!({"pretrained_cfg": {"mean": [0.7, 0.6, 0.7], "std": [0.2, 0.2, 0.2]}});
        let expected = Transform { mean: [0.7, 0.6, 0.7], std: [0.2; 3], ..Transform::evaluation() };
        assert_eq!(Transform::from_timm(&short).unwrap().unwrap(), expected);
        for (key, value) in [
            ("crop_pct", json!(0.0)),
            ("crop_pct", json!("0.9")),
            ("interpolation", json!(3)),
            ("mean", json!([123.0, 116.0, 103.0])),
            ("input_size", json!([3, 224])),
            ("interpolation", json!("random")),
            ("crop_mode", json!("border")),
            ("std", json!([0, 1, 1])),
        ] {
            let mut json = share.clone();
            json[key] = value;
            assert!(Transform::from_timm(&json).unwrap().unwrap_err().contains(key), "{key}");
        }
    }
}
