//! What is fixed when a collection is created.

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
}

impl Spec {
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
