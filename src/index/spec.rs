//! What is fixed when a collection is created.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CollectionName, Error};

/// Largest dimension of a collection.
pub const MAX_DIM: usize = 65_536;

/// Which model made the vectors of a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ModelTag {
    /// Hash over the weights' source, the pooling and the transform: vectors of two models can be compared exactly
    /// where this is equal.
    pub fingerprint: String,
    /// Precision that the first vectors were made with, for information (not part of the fingerprint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
}

/// What is fixed when a collection is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Spec {
    /// Length of every vector.
    pub dim: usize,
    /// The model that makes them.
    pub model: ModelTag,
    /// What is stored of each item.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What is stored of each item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(from = "KindFields", into = "KindFields")]
#[schemars(!from, !into, with = "KindFields")]
pub enum Kind {
    /// One vector of the picture.
    #[default]
    Pictures,
    /// The vectors of all its patches, and their mean as its vector.
    Patches(PatchOptions),
}

/// How pictures become patches, and how many of them are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchOptions {
    /// Most patches that a picture is compared with; a coreset keeps to it.
    pub max_patches: usize,
    /// Number of the block whose tokens they are, from 1; `None` for the last one.
    pub layer: Option<u32>,
    /// Longer side in pixels at which the model sees a picture.
    pub size: u32,
}

impl PatchOptions {
    /// Default of `max_patches`: with 384 dimensions 40 MB.
    pub const MAX_PATCHES: usize = 100_000;
    /// Default of `size`.
    pub const SIZE: u32 = 480;
}

/// As it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "CollectionKind")]
pub enum KindName {
    /// One vector of each picture, for classes and searches.
    #[default]
    Pictures,
    /// The vectors of all its patches, for anomalies.
    Patches,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, schemars::JsonSchema)]
struct KindFields {
    /// What is stored of each item.
    #[serde(default)]
    kind: KindName,
    /// Of patches, most that a picture is compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_patches: Option<usize>,
    /// Of patches, the block whose tokens they are; the last one where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layer: Option<u32>,
    /// Of patches, the longer side in pixels at which the model sees a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pictures => formatter.write_str("pictures"),
            Self::Patches(PatchOptions { max_patches, layer, size }) => {
                let layer = layer.map_or_else(String::new, |layer| format!(", layer {layer}"));
                write!(formatter, "patches (max_patches {max_patches}, size {size}{layer})")
            }
        }
    }
}

impl From<KindFields> for Kind {
    fn from(KindFields { kind, max_patches, layer, size }: KindFields) -> Self {
        match kind {
            KindName::Pictures => Self::Pictures,
            KindName::Patches => Self::Patches(PatchOptions {
                max_patches: max_patches.unwrap_or(PatchOptions::MAX_PATCHES),
                layer,
                size: size.unwrap_or(PatchOptions::SIZE),
            }),
        }
    }
}

impl From<Kind> for KindFields {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Pictures => Self { kind: KindName::Pictures, max_patches: None, layer: None, size: None },
            Kind::Patches(PatchOptions { max_patches, layer, size }) => {
                Self { kind: KindName::Patches, max_patches: Some(max_patches), layer, size: Some(size) }
            }
        }
    }
}

impl Spec {
    /// A collection of pictures.
    pub fn pictures(dim: usize, model: ModelTag) -> Self {
        Self { dim, model, kind: Kind::Pictures }
    }

    /// How its pictures become patches, where it holds patches.
    pub fn patches(&self) -> Option<PatchOptions> {
        match self.kind {
            Kind::Pictures => None,
            Kind::Patches(options) => Some(options),
        }
    }

    /// Refuses dimensions that no store takes.
    pub(super) fn check_dim(&self) -> Result<(), Error> {
        if self.dim == 0 || self.dim > MAX_DIM {
            return Err(Error::InvalidParameter(format!("a vector has 1 to {MAX_DIM} dimensions, not {}", self.dim)));
        }
        Ok(())
    }

    /// Refuses vectors of another model for the collection `name`.
    pub(super) fn check_model(&self, name: &CollectionName, fingerprint: &str) -> Result<(), Error> {
        let own = &self.model.fingerprint;
        if own == fingerprint {
            return Ok(());
        }
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        Err(Error::Conflict(format!(
            "collection {name} holds vectors of the model {}…, not of {}…: use that model, or another collection",
            short(own),
            short(fingerprint),
        )))
    }

    /// Whether a collection `name` of this spec may stand for one of `wanted`.
    pub(super) fn check_same(&self, name: &CollectionName, wanted: &Self) -> Result<(), Error> {
        self.check_model(name, &wanted.model.fingerprint)?;
        if self.dim != wanted.dim {
            return Err(Error::Conflict(format!("collection {name} has {} dimensions, not {}", self.dim, wanted.dim)));
        }
        if self.kind != wanted.kind {
            return Err(Error::Conflict(format!("collection {name} holds {}, not {}: use another name", self.kind, wanted.kind)));
        }
        Ok(())
    }
}

/// What to do about a collection that exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExisting {
    /// An error.
    Refuse,
    /// The old one and all its items go, in the same step.
    Replace,
}
