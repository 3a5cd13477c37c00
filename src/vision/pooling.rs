//! Which of a model's tokens become an embedding.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which tokens become the embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The CLS token; of a convolutional network its pooled features.
    #[default]
    Cls,
    /// The mean of the patch tokens, without CLS and registers.
    Mean,
    /// CLS, then the mean, side by side: twice the model's dimension.
    ClsMean,
    /// Every patch token, row by row.
    Patches,
}

impl Pooling {
    /// Its name, as options and fingerprints write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::ClsMean => "cls_mean",
            Self::Patches => "patches",
        }
    }

    /// Length of an embedding of a model of this dimension.
    pub fn dim(self, model_dim: usize) -> usize {
        if self == Self::ClsMean { 2 * model_dim } else { model_dim }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Pooling {
    type Err = UnknownOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Cls, Self::Mean, Self::ClsMean, Self::Patches]
            .into_iter()
            .find(|pooling| pooling.as_str() == text)
            .ok_or_else(|| UnknownOption { option: "pooling", text: text.into(), known: "cls, mean, cls_mean, patches" })
    }
}

/// An option's value is not one of those known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {option} `{text}`; known are {known}")]
pub struct UnknownOption {
    /// Name of the option.
    pub option: &'static str,
    /// Its value.
    pub text: String,
    /// The values that are understood.
    pub known: &'static str,
}
