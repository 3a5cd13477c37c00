//! Names of backbones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Backbones that can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Arch {
    /// dim 192, depth 12, 3 heads
    VitTiny,
    /// dim 384, depth 12, 6 heads
    VitSmall,
    /// dim 768, depth 12, 12 heads
    VitBase,
    /// 8 units of two convolutions, dim 512
    Resnet18,
    /// 16 bottlenecks, dim 2048
    Resnet50,
    /// 18 blocks, dim 768
    ConvnextTiny,
    /// 36 blocks, dim 768
    ConvnextSmall,
    /// 36 blocks, dim 1024
    ConvnextBase,
    /// 36 blocks, dim 1536
    ConvnextLarge,
}

const NAMES: [(&str, Arch); 11] = [
    ("vit_tiny", Arch::VitTiny),
    ("vit_small", Arch::VitSmall),
    ("vit_base", Arch::VitBase),
    ("resnet18", Arch::Resnet18),
    ("resnet50", Arch::Resnet50),
    ("convnext_tiny", Arch::ConvnextTiny),
    ("convnext_small", Arch::ConvnextSmall),
    ("convnext_base", Arch::ConvnextBase),
    ("convnext_large", Arch::ConvnextLarge),
    // Old names, which the public code takes too.
    ("deit_tiny", Arch::VitTiny),
    ("deit_small", Arch::VitSmall),
];

/// A backbone that is not to be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not supported: the backbones are vit_tiny, vit_small and vit_base (any --patch-size), resnet18, resnet50, convnext_tiny, \
     convnext_small, convnext_base and convnext_large"
)]
pub struct Unsupported(String);

impl Arch {
    /// True for residual networks.
    pub fn is_resnet(self) -> bool {
        matches!(self, Self::Resnet18 | Self::Resnet50)
    }

    /// True for `ConvNeXt`.
    pub fn is_convnext(self) -> bool {
        matches!(self, Self::ConvnextTiny | Self::ConvnextSmall | Self::ConvnextBase | Self::ConvnextLarge)
    }
}

impl FromStr for Arch {
    type Err = Unsupported;

    fn from_str(name: &str) -> Result<Self, Unsupported> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, arch)| *arch).ok_or_else(|| Unsupported(name.to_owned()))
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(NAMES.iter().find(|(_, arch)| arch == self).map_or("", |(name, _)| name))
    }
}

impl From<Arch> for String {
    fn from(arch: Arch) -> Self {
        arch.to_string()
    }
}

impl TryFrom<String> for Arch {
    type Error = Unsupported;

    fn try_from(name: String) -> Result<Self, Unsupported> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_refused_by_name() {
        for (name, arch) in NAMES {
            assert_eq!(name.parse(), Ok(arch));
            assert_eq!(arch.to_string().parse(), Ok(arch));
        }
        for name in ["xcit_small_12_p16", "convnext_huge", "resnet101", ""] {
            let said = name.parse::<Arch>().unwrap_err().to_string();
            assert!(said.starts_with(name) && said.contains("resnet50"), "{said}");
        }
    }
}
