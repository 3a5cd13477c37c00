//! The transform that Hugging Face's `preprocessor_config.json` describes.

use serde_json::{Map, Value as Json};

use super::timm::positive;
use super::{Interpolation, MOST_SIDE, Resize, Transform};

/// Mean and deviation of red, green and blue.
type Pixels = ([f64; 3], [f64; 3]);

/// What a class of image processors does where its file leaves a setting out.
struct Class {
    /// Its name, without `ImageProcessor` or `FeatureExtractor` and what follows.
    family: &'static str,
    /// A number for the size means the shorter side, not both.
    size_is_shorter: bool,
    /// Its `size`.
    size: u32,
    /// Side of the square that it cuts out.
    crop: Option<u32>,
    /// Its `resample`.
    resample: u64,
    /// Its `image_mean` and `image_std`.
    pixels: Option<Pixels>,
}

const STANDARD: Pixels = ([0.5; 3], [0.5; 3]);
const CLIP: Pixels = ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
const IMAGENET: Pixels = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

const VIT: Class = Class { family: "ViT", size_is_shorter: false, size: 224, crop: None, resample: 2, pixels: Some(STANDARD) };
/// The classes whose steps are known.
const CLASSES: [Class; 7] = [
    VIT,
    Class { family: "Bit", size_is_shorter: true, crop: Some(224), resample: 3, pixels: Some(CLIP), ..VIT },
    Class { family: "CLIP", size_is_shorter: true, crop: Some(224), resample: 3, pixels: Some(CLIP), ..VIT },
    Class { family: "DeiT", size: 256, crop: Some(224), resample: 3, ..VIT },
    Class { family: "ConvNext", size_is_shorter: true, size: 384, ..VIT },
    Class { family: "DINOv3ViT", pixels: Some(IMAGENET), ..VIT },
    Class { family: "Siglip", resample: 3, ..VIT },
];
/// Of a file that names no class: the steps of most, and no mean, which differs too much from class to class.
const UNNAMED: Class = Class { family: "", pixels: None, ..VIT };

/// Settings that are read.
const READ: [&str; 12] = [
    "do_resize",
    "size",
    "default_to_square",
    "resample",
    "do_center_crop",
    "crop_size",
    "crop_pct",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
];
/// Settings that change no pixel here. Pictures are in RGB already.
const HARMLESS: [&str; 16] = [
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "_processor_class",
    "_valid_processor_keys",
    "auto_map",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "device",
    "return_tensors",
    "disable_grouping",
    "image_seq_length",
    "model_input_names",
    "transformers_version",
    "use_fast",
];

/// Side below which `ConvNextImageProcessor` resizes pictures to more than it, by its `crop_pct`, and then crops.
const CONVNEXT_CROPS_BELOW: u32 = 384;

/// The settings of a file, and the class that fills in others.
struct Processor<'a> {
    json: &'a Map<String, Json>,
    class: &'static Class,
}

impl Transform {
    /// Reads `preprocessor_config.json`.
    ///
    /// # Errors
    /// Which setting is not understood, in words.
    pub fn from_preprocessor(json: &Json) -> Result<Self, String> {
        let settings = json.as_object().ok_or("it is no object of settings")?;
        let name = |key: &str| settings.get(key).and_then(Json::as_str);
        let name = name("image_processor_type").or(name("feature_extractor_type")).unwrap_or_default();
        if name == "TimmWrapperImageProcessor" {
            return Self::from_timm(json).unwrap_or_else(|| Err(format!("image_processor_type is {name}, and there is no pretrained_cfg")));
        }
        Processor::of(settings, name)?.transform()
    }
}

impl<'a> Processor<'a> {
    fn of(json: &'a Map<String, Json>, name: &str) -> Result<Self, String> {
        let family = ["ImageProcessor", "FeatureExtractor"].iter().find_map(|end| name.find(end)).map_or(name, |end| &name[..end]);
        let class = match family {
            // The last is what transformers.js calls any.
            "" | "Image" => &UNNAMED,
            family => CLASSES.iter().find(|class| class.family.eq_ignore_ascii_case(family)).ok_or_else(|| {
                let known: Vec<_> = CLASSES.iter().map(|class| class.family).collect();
                let known = known.join(", ");
                format!("image_processor_type is {name}, and what that does to pictures is not known here: known are those of {known}")
            })?,
        };
        // What is switched off changes nothing.
        let is_off = |value: &Json| value.is_null() || *value == Json::Bool(false);
        let unknown = json.iter().find(|(key, value)| !(READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str()) || is_off(value)));
        match unknown {
            Some((key, value)) => Err(format!("{key} is {value}, which is not known here: take it out if it does not change pixels")),
            None => Ok(Self { json, class }),
        }
    }

    fn transform(&self) -> Result<Transform, String> {
        if self.flag("do_resize")? == Some(false) {
            return Err("do_resize is false; the model needs pictures of a known size".to_owned());
        }
        let (resize, crop) = self.sizes()?;
        let interpolation = match self.get("resample").map_or(Some(self.class.resample), Json::as_u64) {
            Some(1) => Interpolation::Lanczos,
            Some(2) => Interpolation::Bilinear,
            Some(3) => Interpolation::Bicubic,
            _ => {
                let resample = &self.json["resample"];
                return Err(format!("resample is {resample}, known are 1 (Lanczos), 2 (bilinear) and 3 (bicubic)"));
            }
        };
        let (mean, std) = self.normalisation()?;
        Ok(Transform { resize, crop, interpolation, mean, std })
    }

    /// A setting that is not null.
    fn get(&self, key: &str) -> Option<&'a Json> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        let wrong = |value: &Json| format!("{key} is {value}; true or false is expected");
        self.get(key).map(|value| value.as_bool().ok_or_else(|| wrong(value))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        let wrong = |value: &Json| format!("{key} is {value}; a number is expected");
        self.get(key).map(|value| value.as_f64().ok_or_else(|| wrong(value))).transpose()
    }

    /// The two steps that set the size.
    fn sizes(&self) -> Result<(Resize, Option<(u32, u32)>), String> {
        let is_shorter = self.flag("default_to_square")?.map_or(self.class.size_is_shorter, |square| !square);
        let one = |side: u32| if is_shorter { Resize::Shorter(side) } else { Resize::Exact(side, side) };
        let resize = match self.get("size") {
            // The default is whole, and not a number to be understood.
            None if self.class.size_is_shorter => Resize::Shorter(self.class.size),
            None => Resize::Exact(self.class.size, self.class.size),
            Some(size) => match (side(size), named(size, &["shortest_edge"]), named(size, &["height", "width"])) {
                (Some(side), ..) => one(side),
                (_, Some(edges), _) => Resize::Shorter(edges[0]),
                (.., Some(sides)) => Resize::Exact(sides[0], sides[1]),
                _ => {
                    return Err(format!(
                        "size is {size}; known are one number, shortest_edge, or height and width, sides are 1 to {MOST_SIDE} pixels"
                    ));
                }
            },
        };
        if let (Resize::Shorter(shorter), "ConvNext") = (resize, self.class.family) {
            let share = self.number("crop_pct")?.unwrap_or(224.0 / 256.0);
            if !(0.1..=1.0).contains(&share) {
                return Err(format!("crop_pct is {share}, known are 0.1 to 1"));
            }
            // Small sizes are cropped, large ones squeezed.
            return Ok(if shorter < CONVNEXT_CROPS_BELOW {
                (Resize::Shorter((f64::from(shorter) / share) as u32), Some((shorter, shorter)))
            } else {
                (Resize::Exact(shorter, shorter), None)
            });
        }
        let said = self.get("crop_size");
        let crops = self.flag("do_center_crop")?.unwrap_or(said.is_some() || self.class.crop.is_some());
        let crop = match said {
            _ if !crops => None,
            Some(size) => Some(sides(size).ok_or_else(|| format!("crop_size is {size}; sides are 1 to {MOST_SIDE} pixels"))?),
            None => Some(self.class.crop.map(|side| (side, side)).ok_or("crop_size is null, and do_center_crop is true")?),
        };
        let room = match resize {
            Resize::Shorter(side) => (side, side),
            Resize::Exact(height, width) => (height, width),
        };
        match crop {
            // They would be padded with black.
            Some((height, width)) if height > room.0 || width > room.1 => {
                Err(format!("crop_size is {height} x {width}, larger than pictures of the size {} x {}", room.0, room.1))
            }
            crop => Ok((resize, crop)),
        }
    }

    /// Mean and deviation of pixels in 0..1. A file may scale pixels by something else than 1/255 first.
    fn normalisation(&self) -> Result<([f32; 3], [f32; 3]), String> {
        let factor = match self.flag("do_rescale")? {
            Some(false) => 1.0,
            _ => self.number("rescale_factor")?.unwrap_or(1.0 / 255.0),
        };
        let scale = factor * 255.0;
        if !(scale.is_finite() && scale > 0.0) {
            return Err(format!("rescale_factor is {factor}"));
        }
        let (mean, std) = if self.flag("do_normalize")? == Some(false) {
            ([0.0; 3], [1.0; 3])
        } else {
            let usual = self.class.pixels;
            let three = |key: &str, usual: Option<[f64; 3]>| match self.get(key) {
                Some(json) => three(json).ok_or_else(|| format!("{key} is {json}; three numbers are expected")),
                None => usual.ok_or_else(|| format!("{key} is not there, and no image_processor_type says what it is then")),
            };
            (three("image_mean", usual.map(|usual| usual.0))?, three("image_std", usual.map(|usual| usual.1))?)
        };
        // To the last bit what the file says where it scales by 1/255.
        let scale = if (scale - 1.0).abs() < 1e-6 { 1.0 } else { scale };
        // Means of pixels in 0..255 beside a scale to 0..1 would make all pictures alike.
        if !mean.iter().all(|mean| (0.0..=1.0).contains(&(mean / scale))) {
            return Err(format!("image_mean is {mean:?}, of pixels in 0 to {scale}"));
        }
        let scaled = |numbers: [f64; 3]| numbers.map(|number| (number / scale) as f32);
        Ok((scaled(mean), positive(scaled(std)).ok_or_else(|| format!("image_std is {std:?}"))?))
    }
}

/// A length in pixels.
pub(super) fn side(json: &Json) -> Option<u32> {
    json.as_u64().and_then(|side| u32::try_from(side).ok()).filter(|side| (1..=MOST_SIDE).contains(side))
}

/// Lengths in pixels under these names, where there are no others.
fn named(json: &Json, names: &[&str]) -> Option<Vec<u32>> {
    let count = json.as_object()?.values().filter(|value| !value.is_null()).count();
    names.iter().map(|name| side(&json[*name])).collect::<Option<Vec<_>>>().filter(|_| count == names.len())
}

/// `{"height", "width"}`, or one number for both.
fn sides(json: &Json) -> Option<(u32, u32)> {
    let both = |sides: Vec<u32>| (sides[0], sides[1]);
    side(json).map(|side| (side, side)).or_else(|| named(json, &["height", "width"]).map(both))
}

pub(super) fn three(json: &Json) -> Option<[f64; 3]> {
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
        assert_eq!(sizes("BitImageProcessor", "image_processor_type"), (Resize::Shorter(224), Some((224, 224)), Interpolation::Bicubic));
        assert_eq!(sizes("ConvNextImageProcessor", "image_processor_type"), (Resize::Shorter(256), Some((224, 224)), bilinear));
        assert_eq!(sizes("ImageFeatureExtractor", "feature_extractor_type"), (Resize::Exact(224, 224), None, bilinear));
    }

    #[test]
    fn what_a_file_leaves_out_is_its_class_s() {
        let transform = |json: &Json| {
            let Transform { resize, crop, interpolation, mean, .. } = read(json);
            (resize, crop, interpolation, mean)
        };
        let (bilinear, bicubic) = (Interpolation::Bilinear, Interpolation::Bicubic);
        let square = |side: u32| Some((side, side));
        for (class, expected) in [
            ("ViTImageProcessor", (Resize::Exact(224, 224), None, bilinear, [0.5; 3])),
            ("ViTImageProcessorFast", (Resize::Exact(224, 224), None, bilinear, [0.5; 3])),
            ("BitImageProcessor", (Resize::Shorter(224), square(224), bicubic, [0.481_454_66, 0.457_827_5, 0.408_210_73])),
            ("DeiTFeatureExtractor", (Resize::Exact(256, 256), square(224), bicubic, [0.5; 3])),
            ("ConvNeXTImageProcessor", (Resize::Exact(384, 384), None, bilinear, [0.5; 3])),
            ("DINOv3ViTImageProcessorFast", (Resize::Exact(224, 224), None, bilinear, [0.485, 0.456, 0.406])),
        ] {
            assert_eq!(transform(&json!({"image_processor_type": class, "image_mean": null, "size": null})), expected, "{class}");
        }
        let mean_alone = json!({"image_mean": [0.4, 0.4, 0.4], "image_std": [0.5, 0.5, 0.5]});
        assert_eq!(transform(&mean_alone), (Resize::Exact(224, 224), None, bilinear, [0.4; 3]));
        assert!(Transform::from_preprocessor(&json!({"size": 224})).unwrap_err().contains("image_mean"));
    }

    #[test]
    fn public_repositories_are_understood() {
        let (mean, std) = (json!([0.485, 0.456, 0.406]), json!([0.229, 0.224, 0.225]));
        let dino = json!({"do_normalize": true, "do_resize": true, "feature_extractor_type": "ViTFeatureExtractor", "image_mean": mean,
            "image_std": std, "resample": 2, "size": 224});
        assert_eq!((read(&dino).resize, read(&dino).crop), (Resize::Exact(224, 224), None));
        let dinov2 = json!({"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_convert_rgb": true,
            "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": mean, "image_processor_type": "BitImageProcessor",
            "image_std": std, "resample": 3, "rescale_factor": 0.003_921_568_627_450_98, "size": {"shortest_edge": 256}});
        assert_eq!(read(&dinov2), Transform::evaluation());
        let dinov3 = json!({"crop_size": null, "data_format": "channels_first", "default_to_square": true, "device": null,
            "disable_grouping": null, "do_center_crop": null, "do_convert_rgb": null, "do_normalize": true, "do_pad": null,
            "do_rescale": true, "do_resize": true, "image_mean": mean, "image_processor_type": "DINOv3ViTImageProcessorFast",
            "image_std": std, "input_data_format": null, "pad_size": null, "resample": 2, "rescale_factor": 0.003_921_568_627_450_98,
            "return_tensors": null, "size": {"height": 224, "width": 224}});
        assert_eq!((read(&dinov3).resize, read(&dinov3).crop), (Resize::Exact(224, 224), None));
        let wrapped = json!({"image_processor_type": "TimmWrapperImageProcessor", "architecture": "vit_small_patch14_dinov2",
            "pretrained_cfg": {"input_size": [3, 518, 518], "crop_pct": 1.0, "mean": mean, "std": std}});
        assert_eq!(read(&wrapped).crop, Some((518, 518)));
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
            ("image_mean", json!([123.675, 116.28, 103.53])),
            ("image_mean", json!(0.5)),
            ("do_resize", json!(false)),
            ("do_resize", json!("false")),
            ("do_center_crop", json!("no")),
            ("resample", json!("bicubic")),
            ("rescale_factor", json!("0.5")),
            ("size", json!({"shortest_edge": 256, "longest_edge": 300})),
            ("crop_size", json!({"height": 512, "width": 512})),
            ("do_flip_channel_order", json!(true)),
            ("do_pad", json!(true)),
            ("pad_size", json!({"height": 300, "width": 300})),
            ("rescale_offset", json!(true)),
            ("offset", json!(true)),
            ("do_grayscale", json!(true)),
            ("keep_aspect_ratio", json!(true)),
            ("ensure_multiple_of", json!(14)),
            ("image_processor_type", json!("DPTImageProcessor")),
            ("image_processor_type", json!("Owlv2ImageProcessor")),
        ] {
            let mut json = base();
            json[key] = value.clone();
            let error = Transform::from_preprocessor(&json).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
        let mut off = base();
        for key in ["do_flip_channel_order", "do_pad", "rescale_offset"] {
            off[key] = json!(false);
        }
        assert_eq!(read(&off), read(&base()));
    }
}
