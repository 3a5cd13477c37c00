//! The transform that Hugging Face's `preprocessor_config.json` describes.

use serde_json::Value as Json;

use super::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, MOST_SIDE, Resize, Transform};

/// What an image processor does where its file leaves a setting out.
struct Defaults {
    /// A number for the size means the shorter side, not both.
    size_is_shorter: bool,
    /// Its `resample`.
    resample: u64,
    /// Side below which pictures are resized to more than it, by this share of it, and then cropped.
    crop_share: Option<(u32, f64)>,
}

impl Defaults {
    /// Those of the class that the file names; `ViTImageProcessor`'s where it names none that is known.
    fn of(json: &Json) -> Self {
        let class = json["image_processor_type"].as_str().or(json["feature_extractor_type"].as_str()).unwrap_or_default();
        let vit = Self { size_is_shorter: false, resample: 2, crop_share: None };
        if class.contains("ConvNext") {
            let share = json["crop_pct"].as_f64().unwrap_or(224.0 / 256.0);
            Self { size_is_shorter: true, crop_share: Some((384, share)), ..vit }
        } else if class.contains("Bit") || class.contains("CLIP") {
            Self { size_is_shorter: true, resample: 3, ..vit }
        } else if class.contains("DeiT") {
            Self { resample: 3, ..vit }
        } else {
            vit
        }
    }
}

impl Transform {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// Which setting is not understood, in words.
    pub fn from_preprocessor(json: &Json) -> Result<Self, String> {
        if json["do_resize"] == Json::Bool(false) {
            return Err("do_resize is false; the model needs pictures of a known size".to_owned());
        }
        let defaults = Defaults::of(json);
        let (resize, crop) = sizes(json, &defaults)?;
        let resample = &json["resample"];
        let interpolation = match resample.as_u64().or(resample.is_null().then_some(defaults.resample)) {
            Some(1) => Interpolation::Lanczos,
            Some(2) => Interpolation::Bilinear,
            Some(3) => Interpolation::Bicubic,
            _ => {
                return Err(format!("resample is {resample}, known are 1 (Lanczos), 2 (bilinear) and 3 (bicubic)"));
            }
        };
        let (mean, std) = normalisation(json)?;
        Ok(Self { resize, crop, interpolation, mean, std })
    }
}

impl Transform {
    /// Reads timm's `pretrained_cfg` from its `config.json`; none where there is no such thing.
    ///
    /// # Errors
    /// Which setting is not understood, in words.
    pub fn from_timm(config: &Json) -> Option<Result<Self, String>> {
        let settings = if config["pretrained_cfg"].is_object() { &config["pretrained_cfg"] } else { config };
        settings["input_size"].is_array().then(|| timm(settings))
    }
}

/// timm's evaluation transform: the shorter side is the input's by `crop_pct`, then the centre is cut out.
fn timm(settings: &Json) -> Result<Transform, String> {
    let sizes = settings["input_size"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [_, height, width] = sizes else { return Err(format!("input_size is {}", settings["input_size"])) };
    let (Some(height), Some(width)) = (side(height), side(width)) else {
        return Err(format!("input_size is {}; sides are 1 to {MOST_SIDE} pixels", settings["input_size"]));
    };
    let share = settings["crop_pct"].as_f64().unwrap_or(0.875);
    if !(0.1..=1.0).contains(&share) {
        return Err(format!("crop_pct is {share}, known are 0.1 to 1"));
    }
    let interpolation = match settings["interpolation"].as_str().unwrap_or("bicubic") {
        "bicubic" => Interpolation::Bicubic,
        "bilinear" => Interpolation::Bilinear,
        "lanczos" => Interpolation::Lanczos,
        other => return Err(format!("interpolation is {other}, known are bicubic, bilinear and lanczos")),
    };
    let scaled = |side: u32| (f64::from(side) / share).floor() as u32;
    let (resize, crop) = match settings["crop_mode"].as_str().unwrap_or("center") {
        "center" if height == width => (Resize::Shorter(scaled(height)), Some((height, width))),
        // An oblong input: both sides are set, as timm does.
        "center" | "squash" => (Resize::Exact(scaled(height), scaled(width)), Some((height, width))),
        other => return Err(format!("crop_mode is {other}, known are center and squash")),
    };
    let numbers = |key: &str, usual: [f32; 3]| match &settings[key] {
        Json::Null => Ok(usual),
        json => three(json).map(|numbers| numbers.map(|number| number as f32)).ok_or_else(|| format!("{key} is {json}")),
    };
    let (mean, std) = (numbers("mean", IMAGENET_MEAN)?, numbers("std", IMAGENET_STD)?);
    if !std.iter().all(|deviation| deviation.is_normal() && *deviation > 0.0) {
        return Err(format!("std is {std:?}"));
    }
    Ok(Transform { resize, crop, interpolation, mean, std })
}

/// The two steps that set the size.
fn sizes(json: &Json, defaults: &Defaults) -> Result<(Resize, Option<(u32, u32)>), String> {
    let size = &json["size"];
    let shorter = side(&size["shortest_edge"]).or(side(size).filter(|_| defaults.size_is_shorter));
    let resize = if let Some(shorter) = shorter {
        if let Some((below, share)) = defaults.crop_share {
            if !(0.1..=1.0).contains(&share) {
                return Err(format!("crop_pct is {}, known are 0.1 to 1", json["crop_pct"]));
            }
            // ConvNextImageProcessor crops small sizes and squeezes large ones.
            return Ok(if shorter < below {
                (Resize::Shorter((f64::from(shorter) / share) as u32), Some((shorter, shorter)))
            } else {
                (Resize::Exact(shorter, shorter), None)
            });
        }
        Resize::Shorter(shorter)
    } else {
        let (height, width) = sides(size).ok_or_else(|| format!("size is {size}; sides are 1 to {MOST_SIDE} pixels"))?;
        Resize::Exact(height, width)
    };
    let crop = &json["crop_size"];
    let crops = json["do_center_crop"].as_bool().unwrap_or(!crop.is_null());
    let crop = crops.then(|| sides(crop).ok_or_else(|| format!("crop_size is {crop}; sides are 1 to {MOST_SIDE} pixels"))).transpose()?;
    Ok((resize, crop))
}

/// Mean and deviation of pixels in 0..1. A file may scale pixels by something else than 1/255 first.
fn normalisation(json: &Json) -> Result<([f32; 3], [f32; 3]), String> {
    let factor = if json["do_rescale"] == Json::Bool(false) { 1.0 } else { json["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0) };
    let scale = factor * 255.0;
    if !(scale.is_finite() && scale > 0.0) {
        return Err(format!("rescale_factor is {}", json["rescale_factor"]));
    }
    let (mean, std) = if json["do_normalize"] == Json::Bool(false) {
        ([0.0; 3], [1.0; 3])
    } else {
        let three = |key: &str| three(&json[key]).ok_or_else(|| format!("{key} is {}", json[key]));
        (three("image_mean")?, three("image_std")?)
    };
    // To the last bit what the file says where it scales by 1/255.
    let scale = if (scale - 1.0).abs() < 1e-6 { 1.0 } else { scale };
    let scaled = |numbers: [f64; 3]| numbers.map(|number| (number / scale) as f32);
    let (scaled_mean, scaled_std) = (scaled(mean), scaled(std));
    if !scaled_mean.iter().all(|mean| mean.is_finite()) {
        return Err(format!("image_mean is {mean:?}"));
    }
    if !scaled_std.iter().all(|deviation| deviation.is_normal() && *deviation > 0.0) {
        return Err(format!("image_std is {std:?}"));
    }
    Ok((scaled_mean, scaled_std))
}

/// A length in pixels.
fn side(json: &Json) -> Option<u32> {
    json.as_u64().and_then(|side| u32::try_from(side).ok()).filter(|side| (1..=MOST_SIDE).contains(side))
}

/// `{"height", "width"}`, or one number for both.
fn sides(json: &Json) -> Option<(u32, u32)> {
    match side(json) {
        Some(side) => Some((side, side)),
        None => Some((side(&json["height"])?, side(&json["width"])?)),
    }
}

fn three(json: &Json) -> Option<[f64; 3]> {
    let values = json.as_array()?.iter().map(Json::as_f64).collect::<Option<Vec<_>>>()?;
    values.try_into().ok()
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

    fn read(json: &Json) -> Transform {
        Transform::from_preprocessor(json).unwrap()
    }

    #[test]
    fn shorter_side_and_crop() {
        assert_eq!(read(&base()), Transform { crop: Some((224, 192)), ..Transform::evaluation() });
    }

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
        for (key, value) in
            [("crop_pct", json!(0.0)), ("interpolation", json!("random")), ("crop_mode", json!("border")), ("std", json!([0, 1, 1]))]
        {
            let mut json = share.clone();
            json[key] = value;
            assert!(Transform::from_timm(&json).unwrap().unwrap_err().contains(key), "{key}");
        }
    }

    #[test]
    fn exact_size_without_a_crop() {
        let mut json = base();
        json["size"] = json!({"height": 224, "width": 112});
        json["do_center_crop"] = json!(false);
        json["resample"] = json!(2);
        let transform = read(&json);
        assert_eq!(transform.resize, Resize::Exact(224, 112));
        assert_eq!(transform.crop, None);
        assert_eq!(transform.interpolation, Interpolation::Bilinear);
    }

    #[test]
    fn one_number_for_the_size_means_what_its_processor_means() {
        let sizes = |class: &str, key: &str| {
            let json = json!({key: class, "size": 224, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]});
            let transform = read(&json);
            (transform.resize, transform.crop, transform.interpolation)
        };
        let bilinear = Interpolation::Bilinear;
        assert_eq!(sizes("ViTFeatureExtractor", "feature_extractor_type"), (Resize::Exact(224, 224), None, bilinear));
        assert_eq!(sizes("BitImageProcessor", "image_processor_type"), (Resize::Shorter(224), None, Interpolation::Bicubic));
        assert_eq!(sizes("ConvNextImageProcessor", "image_processor_type"), (Resize::Shorter(256), Some((224, 224)), bilinear));
        assert_eq!(sizes("unheard of", "image_processor_type"), (Resize::Exact(224, 224), None, bilinear));
    }

    #[test]
    fn convnext_squeezes_large_sizes_and_crops_small_ones() {
        let convnext = |side: u32, share: f64| {
            let mut json = base();
            json["image_processor_type"] = "ConvNextFeatureExtractor".into();
            json["size"] = json!({"shortest_edge": side});
            json["crop_pct"] = share.into();
            let transform = read(&json);
            (transform.resize, transform.crop)
        };
        assert_eq!(convnext(224, 0.95), (Resize::Shorter(235), Some((224, 224))));
        assert_eq!(convnext(384, 1.0), (Resize::Exact(384, 384), None));
    }

    #[test]
    fn another_scale_of_pixels_goes_into_mean_and_deviation() {
        // (x / 127.5 - 1) / 0.5 is (x / 255 - 0.5) / 0.25.
        let mut json = base();
        json["rescale_factor"] = json!(1.0 / 127.5);
        json["image_mean"] = json!([1.0, 1.0, 1.0]);
        json["image_std"] = json!([0.5, 0.5, 0.5]);
        let transform = read(&json);
        let near = |found: [f32; 3], expected: f32| found.iter().all(|value| (value - expected).abs() < 1e-6);
        assert!(near(transform.mean, 0.5) && near(transform.std, 0.25), "{transform:?}");
        json["do_rescale"] = json!(false);
        json["image_std"] = json!([255.0, 255.0, 255.0]);
        assert!(near(read(&json).std, 1.0));
    }

    #[test]
    fn settings_that_are_not_understood_are_named() {
        for (key, value) in [
            ("resample", json!(0)),
            ("size", json!({"longest_edge": 5})),
            ("size", json!({"shortest_edge": 4_000_000_000_u32})),
            ("crop_size", json!({"height": 224, "width": 4097})),
            ("image_std", json!([1e-300, 1.0, 1.0])),
            ("image_mean", json!([1e300, 1.0, 1.0])),
            ("rescale_factor", json!(-0.5)),
            ("image_std", json!([0.0, 1.0, 1.0])),
            ("image_mean", json!([0.5])),
            ("do_resize", json!(false)),
        ] {
            let mut json = base();
            json[key] = value;
            let error = Transform::from_preprocessor(&json).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
