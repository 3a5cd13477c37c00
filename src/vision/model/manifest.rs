//! `manifest.json` of a model folder.
//!
//! ```
//! use dino_vision::model::Manifest;
//!
//! let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/tiny-model");
//! let mut manifest = Manifest::load(folder.as_ref())?;
//! assert_eq!((manifest.architecture.as_str(), manifest.heads), ("dino-vit", 4));
//!
//! manifest.heads = 5; // does not divide the 32 numbers of a token
//! let copy = tempfile::tempdir()?;
//! assert!(manifest.save(copy.path()).is_err_and(|error| error.to_string().contains("heads")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mask_defaults::MaskDefaults;
use crate::transform::{MOST_SIDE, Resize, Transform};

/// Bytes of the file; real ones have a few thousand.
const MOST_BYTES: u64 = 1 << 20;
/// Bytes of a name in it, which answers and metrics repeat.
const MOST_TEXT: usize = 255;
/// Bytes of a name on a hub, with the path of a file.
const MOST_HUB: usize = 1280;
/// Dimension of an embedding; that of collections has the same bound.
const MOST_DIM: u32 = 65_536;
/// Blocks of a network.
const MOST_BLOCKS: u32 = 1024;
/// Register tokens.
const MOST_REGISTERS: u32 = 1024;
/// Patches of one picture that a transform may make, as 80 x 80. Attention takes memory with the square of their number: 160 MB for each
/// head at this bound.
const MOST_PATCHES: u32 = 6400;
/// Length of the shorter side before a crop, of which only what the crop keeps is computed.
const MOST_SHORTER: u32 = 16 * MOST_SIDE;
/// Largest mean of pixels in 0..1, and largest and smallest deviation: what is far from 1 leaves nothing of a picture.
const FAR: f32 = 1e4;

/// What a model folder says of itself: its file `manifest.json`. Field names are part of the public contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this file's format, now 1.
    #[schemars(extend("const" = 1))]
    pub format: u32,
    /// `vit`, `resnet` or `convnext`, with the family it comes from, for example `dino-vit`, `dinov2-vit`, `dinov3-vit`, `dino-resnet`,
    /// `dinov3-convnext`.
    #[schemars(length(min = 1, max = MOST_TEXT))]
    pub architecture: String,
    /// Side of a patch in pixels; for a convolutional network the stride of its feature map (32).
    #[schemars(range(min = 1, max = MOST_SIDE))]
    pub patch_size: u32,
    /// Dimension of the embedding.
    #[schemars(range(min = 1, max = MOST_DIM))]
    pub dim: u32,
    /// Number of blocks.
    #[schemars(range(min = 1, max = MOST_BLOCKS))]
    pub depth: u32,
    /// Attention heads per block; 0 for a convolutional network.
    #[schemars(range(max = MOST_DIM))]
    pub heads: u32,
    /// Register tokens between CLS and the patches.
    #[schemars(range(max = MOST_REGISTERS))]
    pub registers: u32,
    /// Blocks, counted from the last, whose CLS token the output `last_blocks` holds; 0 without that output.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = MOST_BLOCKS))]
    pub last_blocks: u32,
    /// Blocks whose tokens `[B, T, D]` after the final norm the outputs `hidden_state_N` hold, N from 1 to `depth`, in ascending order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MOST_BLOCKS), inner(range(min = 1, max = MOST_BLOCKS)), extend("uniqueItems" = true))]
    pub layers: Vec<u32>,
    /// (height, width) in pixels of every picture, where the graphs take this size alone (`export --static`); absent where they take
    /// every multiple of the patch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_size: Option<(u32, u32)>,
    /// Where the first token of `last_hidden_state` is no CLS token, but a whitened embedding of CLS and patches (`export --whiten`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whitening: Option<Whitening>,
    /// How positions follow the picture's size, in words: `dino-bicubic-scale`, `bicubic-size`, `bicubic-antialias`, `rotary`, `none`.
    #[schemars(length(max = MOST_TEXT))]
    pub position_interpolation: String,
    /// The evaluation transform.
    pub transform: Transform,
    /// How masks are best made, where that was measured: `/segment` without `method` follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<MaskDefaults>,
    /// The checkpoint that the weights come from.
    pub source: Source,
    /// One entry for each ONNX file, by precision (`f32`, `f16`, `int8`).
    #[schemars(extend("propertyNames" = {"enum": Manifest::PRECISIONS}, "minProperties" = 1))]
    pub files: BTreeMap<String, File>,
    /// Program and version that wrote the folder.
    #[schemars(length(max = MOST_TEXT))]
    pub made_by: String,
}

/// A linear map after which embeddings of some pictures have no correlations left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Whitening {
    /// Pictures that it was computed of.
    pub pictures: usize,
    /// SHA-256 of its numbers, in hex: embeddings of another one are not comparable.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
}

/// Origin of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// File name, without its folders.
    #[schemars(length(max = MOST_TEXT))]
    pub file: String,
    /// Layout that was recognised, for example `dino-pth`, `hf-dinov2`.
    #[schemars(length(max = MOST_TEXT))]
    pub layout: String,
    /// SHA-256 of the file, in hex.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
    /// Its name on a model hub, with the commit that was fetched: `hf://OWNER/NAME@COMMIT[/FILE]`; absent where it was a file here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MOST_HUB))]
    pub hub: Option<String>,
}

/// One ONNX file of the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct File {
    /// File name inside the folder.
    #[schemars(length(max = MOST_TEXT), regex(pattern = r"^[^/\\]+$"))]
    pub name: String,
    /// SHA-256 of the file, in hex.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
    /// The file beside it that holds its weights (ONNX external data); absent where the ONNX file holds them itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// What this precision costs against f32, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// External data of an ONNX file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Data {
    /// File name inside the folder.
    #[schemars(length(max = MOST_TEXT), regex(pattern = r"^[^/\\]+$"))]
    pub name: String,
    /// SHA-256 of the file, in hex.
    #[schemars(regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
}

/// The difference that a precision makes, on embeddings (CLS, or a ResNet's pooled features) from which the mean of the
/// exact ones was subtracted: without that, the part that all pictures share would hide what tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// Pictures that were embedded.
    pub pictures: usize,
    /// Lowest cosine between a picture's narrow and exact embedding.
    #[schemars(range(min = -1, max = 1))]
    pub cosine_min: f64,
    /// Their mean.
    #[schemars(range(min = -1, max = 1))]
    pub cosine_mean: f64,
    /// Share of the ten nearest neighbours that are the same.
    #[schemars(range(min = 0, max = 1))]
    pub top10_overlap: f64,
    /// Share of the pictures that the vote of their neighbours (k = 20, T = 0.07) puts into the same class; absent where
    /// the pictures are not in folders of at least two classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub knn_agreement: Option<f64>,
}

/// Why a manifest cannot be used. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read or written.
    #[error("{0}; a model folder holds a manifest.json, and an ONNX file of others is given by its own path (--model FILE.onnx)")]
    Io(#[from] std::io::Error),
    /// It is no JSON of this form.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the field and the line.
        source: serde_json::Error,
    },
    /// A field has a value that cannot be.
    #[error("{}: {field} {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
}

/// A field and what is wrong with its value.
type Complaint = (&'static str, String);

impl Manifest {
    /// Name of the file in a model folder.
    pub const FILE_NAME: &str = "manifest.json";
    /// The only version of the format so far.
    pub const FORMAT: u32 = 1;
    /// Names that a file of the folder can have in [`Manifest::files`].
    pub const PRECISIONS: [&str; 3] = ["f32", "f16", "int8"];

    /// JSON Schema (draft 2020-12) of the file, committed as `models/manifest.schema.json`. What it cannot say, [`Self::load`]
    /// checks as well: that heads divide the dimension, and patches the size that the transform makes.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// Reads and checks the manifest of a model folder.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn load(folder: &Path) -> Result<Self, ManifestError> {
        let path = folder.join(Self::FILE_NAME);
        let length = fs::metadata(&path)?.len();
        if length > MOST_BYTES {
            let reason = format!("has {length} bytes, more than the {MOST_BYTES} that a manifest may have");
            return Err(ManifestError::Field { path, field: "the file", reason });
        }
        let text = fs::read_to_string(&path)?;
        let manifest: Self = serde_json::from_str(&text).map_err(|source| ManifestError::Parse { path: path.clone(), source })?;
        manifest.check().map_err(|(field, reason)| ManifestError::Field { path, field, reason })?;
        Ok(manifest)
    }

    /// Checks the manifest and writes it into a model folder; a reader sees the old file or the new one.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn save(&self, folder: &Path) -> Result<(), ManifestError> {
        let path = folder.join(Self::FILE_NAME);
        self.check().map_err(|(field, reason)| ManifestError::Field { path: path.clone(), field, reason })?;
        let mut text = serde_json::to_string_pretty(self).map_err(|source| ManifestError::Parse { path: path.clone(), source })?;
        text.push('\n');
        super::replace(folder, Self::FILE_NAME, text.as_bytes())?;
        Ok(())
    }

    /// Whether it is a convolutional network: no patches, no CLS token, no attention.
    pub fn is_convolutional(&self) -> bool {
        ["resnet", "convnet", "convnext"].iter().any(|kind| self.architecture.contains(kind))
    }

    fn check(&self) -> Result<(), Complaint> {
        let require = |holds: bool, field, reason: &str| {
            if holds { Ok(()) } else { Err((field, reason.to_owned())) }
        };
        require(self.format == Self::FORMAT, "format", &format!("is {}, this program reads 1", self.format))?;
        require(!self.architecture.is_empty(), "architecture", "is empty")?;
        for (field, text) in [
            ("architecture", &self.architecture),
            ("position_interpolation", &self.position_interpolation),
            ("source.file", &self.source.file),
            ("source.layout", &self.source.layout),
            ("made_by", &self.made_by),
        ] {
            require(is_short(text), field, &format!("must have at most {MOST_TEXT} bytes, and no control characters"))?;
        }
        let hub = self.source.hub.as_deref().unwrap_or_default();
        let reason = format!("must have at most {MOST_HUB} bytes, and no control characters");
        require(hub.len() <= MOST_HUB && !hub.contains(char::is_control), "source.hub", &reason)?;
        for (field, number, least, most) in [
            ("patch_size", self.patch_size, 1, MOST_SIDE),
            ("dim", self.dim, 1, MOST_DIM),
            ("depth", self.depth, 1, MOST_BLOCKS),
            ("heads", self.heads, 0, MOST_DIM),
            ("registers", self.registers, 0, MOST_REGISTERS),
            ("last_blocks", self.last_blocks, 0, self.depth),
        ] {
            require((least..=most).contains(&number), field, &format!("is {number}; known are {least} to {most}"))?;
        }
        if !self.is_convolutional() {
            let divides = self.heads > 0 && self.dim.is_multiple_of(self.heads);
            require(divides, "heads", &format!("({}) must divide dim ({})", self.heads, self.dim))?;
        }
        let ascending = self.layers.is_sorted_by(|before, after| before < after);
        let known = self.layers.iter().all(|layer| (1..=self.depth).contains(layer));
        require(ascending && known, "layers", &format!("must be numbers of blocks from 1 to {}, in ascending order", self.depth))?;
        self.check_transform()?;
        self.segment.map_or(Ok(()), |segment| segment.check())?;
        require(is_sha256(&self.source.sha256), "source.sha256", "must be 64 hex digits")?;
        let whitening = self.whitening.as_ref().is_none_or(|whitening| is_sha256(&whitening.sha256));
        require(whitening, "whitening.sha256", "must be 64 hex digits")?;
        require(!self.files.is_empty(), "files", "must name at least one ONNX file")?;
        for (precision, file) in &self.files {
            let known = Self::PRECISIONS.contains(&precision.as_str());
            require(known, "files", &format!("has `{precision}`; known are {}", Self::PRECISIONS.join(", ")))?;
            let data = file.data.iter().map(|data| (&data.name, &data.sha256));
            for (name, hash) in std::iter::once((&file.name, &file.sha256)).chain(data) {
                require(is_short(name), "files", &format!("has a name of more than {MOST_TEXT} bytes, or with control characters"))?;
                require(is_plain_name(name), "files", &format!("has the name `{name}`, which is a path"))?;
                require(is_sha256(hash), "files", &format!("must give `{precision}` a sha256 of 64 hex digits for each of its files"))?;
            }
        }
        Ok(())
    }

    fn check_transform(&self) -> Result<(), Complaint> {
        let fail = |field, reason: String| Err((field, reason));
        let (sides, most) = match self.transform.resize {
            Resize::Shorter(side) => ([side, side], MOST_SHORTER),
            Resize::Exact(height, width) => ([height, width], MOST_SIDE),
        };
        if !sides.iter().all(|side| (1..=most).contains(side)) {
            return fail("transform.resize", format!("is {} and {} pixels; known are 1 to {most}", sides[0], sides[1]));
        }
        let Some((height, width)) = self.transform.output_size() else {
            return fail("transform.crop", "must be given, since the pictures would differ in size".into());
        };
        if let Some(only) = self.static_size.filter(|only| *only != (height, width)) {
            return fail("static_size", format!("is {} x {} pixels, and the transform gives {height} x {width}", only.0, only.1));
        }
        if height.max(width) > MOST_SIDE {
            return fail("transform.crop", format!("gives {height} x {width} pixels; no side may be longer than {MOST_SIDE}"));
        }
        let patch = self.patch_size;
        let fits = |side: u32| side > 0 && (self.is_convolutional() || side.is_multiple_of(patch));
        if !fits(height) || !fits(width) {
            return fail("transform", format!("gives {height} x {width} pixels, no multiple of the patch ({patch})"));
        }
        let patches = (height / patch) * (width / patch);
        if !self.is_convolutional() && patches > MOST_PATCHES {
            return fail("transform", format!("gives {patches} patches for each picture; at most {MOST_PATCHES} are run"));
        }
        if !self.transform.mean.iter().all(|mean| mean.abs() <= FAR) {
            return fail("transform.mean", format!("must lie between -{FAR} and {FAR}, for pixels in 0..1"));
        }
        if !self.transform.std.iter().all(|std| (1.0 / FAR..=FAR).contains(std)) {
            return fail("transform.std", format!("must lie between {} and {FAR}, for pixels in 0..1", 1.0 / FAR));
        }
        Ok(())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Short enough for a log's line and an answer, and of one line.
fn is_short(text: &str) -> bool {
    text.len() <= MOST_TEXT && !text.contains(char::is_control)
}

/// A file of the folder itself: no separators, no `..`.
fn is_plain_name(name: &str) -> bool {
    !name.contains('\\') && Path::new(name).file_name().is_some_and(|last| last == name)
}

#[cfg(test)]
mod tests {
    use super::{Manifest, ManifestError};

    fn manifest() -> serde_json::Value {
        serde_json::json!({
            "format": 1,
            "architecture": "dino-vit",
            "patch_size": 8,
            "dim": 48,
            "depth": 3,
            "heads": 4,
            "registers": 0,
            "position_interpolation": "dino-bicubic-scale",
            "transform": {
                "resize": {"shorter": 256},
                "crop": [224, 224],
                "interpolation": "bicubic",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
            "source": {"file": "checkpoint.pth", "layout": "dino-pth", "sha256": "a".repeat(64)},
            "files": {"f32": {"name": "model.onnx", "sha256": "b".repeat(64)}},
            "made_by": "dino-train 0.1.0",
        })
    }

    fn load(manifest: &serde_json::Value) -> Result<Manifest, ManifestError> {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(Manifest::FILE_NAME), manifest.to_string()).unwrap();
        Manifest::load(folder.path())
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let before = load(&manifest()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        before.save(folder.path()).unwrap();
        assert_eq!(Manifest::load(folder.path()).unwrap(), before);
        let names: Vec<_> = fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["manifest.json"]);
    }

    #[test]
    fn a_wrong_value_is_named_with_file_and_field() {
        for (pointer, value, field) in [
            ("/format", 2.into(), "format"),
            ("/patch_size", 0.into(), "patch_size"),
            ("/heads", 5.into(), "heads"),
            ("/heads", 0.into(), "heads"),
            ("/transform/crop", serde_json::Value::Null, "transform.crop"),
            ("/transform/crop", serde_json::json!([220, 224]), "transform"),
            ("/transform/std", serde_json::json!([1.0, 0.0, 1.0]), "transform.std"),
            ("/transform/resize", serde_json::json!({"exact": [0, 224]}), "transform.resize"),
            ("/architecture", "a".repeat(256).into(), "architecture"),
            ("/architecture", "vit\nERROR".into(), "architecture"),
            ("/patch_size", u32::MAX.into(), "patch_size"),
            ("/dim", 3_000_000_000_u32.into(), "dim"),
            ("/depth", 1025.into(), "depth"),
            ("/registers", 1_000_000.into(), "registers"),
            ("/transform/crop", serde_json::json!([2_240_000, 2_240_000]), "transform.crop"),
            ("/transform/crop", serde_json::json!([4104, 8]), "transform.crop"),
            ("/transform/crop", serde_json::json!([4096, 4096]), "transform"),
            ("/transform/crop", serde_json::json!([0, 224]), "transform"),
            ("/transform/resize", serde_json::json!({"shorter": u32::MAX}), "transform.resize"),
            ("/transform/resize", serde_json::json!({"exact": [4104, 224]}), "transform.resize"),
            ("/transform/mean", serde_json::json!([1e38, 0.0, 0.0]), "transform.mean"),
            ("/transform/std", serde_json::json!([1e-38, 1.0, 1.0]), "transform.std"),
            ("/made_by", "a".repeat(256).into(), "made_by"),
            ("/files/f32/name", "a".repeat(256).into(), "files"),
            ("/source/sha256", "abc".into(), "source.sha256"),
            ("/files", serde_json::json!({}), "files"),
            ("/files/f32/name", "../model.onnx".into(), "files"),
            ("/files/f32/name", "".into(), "files"),
            ("/files/f32/data", serde_json::json!({"name": "../x", "sha256": "b".repeat(64)}), "files"),
            ("/files/f32/data", serde_json::json!({"name": "x", "sha256": "b"}), "files"),
            ("/layers", serde_json::json!([0]), "layers"),
            ("/layers", serde_json::json!([1, 4]), "layers"),
            ("/layers", serde_json::json!([2, 2]), "layers"),
            ("/static_size", serde_json::json!([224, 232]), "static_size"),
        ] {
            let mut wrong = manifest();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            wrong.pointer_mut(parent).unwrap()[key] = value;
            let error = load(&wrong).unwrap_err();
            assert!(matches!(error, ManifestError::Field { field: found, .. } if found == field), "{pointer}: {error}");
            assert!(error.to_string().contains("manifest.json"), "{error}");
        }
    }

    #[test]
    fn the_largest_transform_is_accepted_and_a_file_of_megabytes_is_not() {
        let mut large = manifest();
        large["transform"]["crop"] = serde_json::json!([640, 640]);
        load(&large).unwrap();
        large["made_by"] = " ".repeat(2 << 20).into();
        let error = load(&large).unwrap_err().to_string();
        assert!(error.contains("manifest.json: the file has 2"), "{error}");
    }

    #[test]
    fn a_missing_field_or_file_is_named() {
        let mut incomplete = manifest();
        incomplete.as_object_mut().unwrap().remove("registers");
        let error = load(&incomplete).unwrap_err().to_string();
        assert!(error.contains("registers") && error.contains("manifest.json"), "{error}");

        let error = Manifest::load(std::path::Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/manifest.json"), "{error}");
    }
}
