//! Recipes that come with the program, as files that people can read: `training/recipes`.

use clap::ValueEnum;

/// A recipe of the paper or of its public code, of another method's, or the one for small data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Preset {
    /// ViT-S/16, 100 epochs: the baseline
    #[value(name = "vit_small_16")]
    VitSmall16,
    /// ViT-S/16, 300 epochs, a warmer teacher
    #[value(name = "vit_small_16_boosted")]
    VitSmall16Boosted,
    /// ViT-B/8, 300 epochs: the best and the dearest
    #[value(name = "vit_base_8")]
    VitBase8,
    /// ResNet-50, 100 epochs of SGD
    #[value(name = "resnet50")]
    Resnet50,
    /// DINOv2's training with small steps, to go on from public weights: for --init
    #[value(name = "continue_dinov2")]
    ContinueDinov2,
    /// `LeJEPA`, which has no teacher, with what its public code advises: also the settings of --method lejepa that are not given
    #[value(name = "lejepa")]
    Lejepa,
    /// A small ViT on crops of 48 pixels: some thousand pictures and two CPU cores
    #[value(name = "small_data")]
    SmallData,
}

impl Preset {
    /// The file, TOML.
    pub fn text(self) -> &'static str {
        match self {
            Self::VitSmall16 => include_str!("../../../recipes/vit_small_16.toml"),
            Self::VitSmall16Boosted => include_str!("../../../recipes/vit_small_16_boosted.toml"),
            Self::VitBase8 => include_str!("../../../recipes/vit_base_8.toml"),
            Self::Resnet50 => include_str!("../../../recipes/resnet50.toml"),
            Self::ContinueDinov2 => include_str!("../../../recipes/continue_dinov2.toml"),
            Self::Lejepa => include_str!("../../../recipes/lejepa.toml"),
            Self::SmallData => include_str!("../../../recipes/small_data.toml"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::recipe::{Arch, Recipe};

    #[test]
    fn every_preset_is_a_sound_recipe() {
        for preset in Preset::value_variants() {
            let recipe: Recipe = toml::from_str(preset.text()).unwrap_or_else(|e| panic!("{preset:?}: {e}"));
            recipe.check().unwrap_or_else(|e| panic!("{preset:?}: {e}"));
        }
    }

    #[test]
    fn the_baseline_is_the_default() {
        assert_eq!(toml::from_str::<Recipe>(Preset::VitSmall16.text()).unwrap(), Recipe::default());
        assert_eq!(toml::from_str::<Recipe>(Preset::Resnet50.text()).unwrap().arch, Arch::Resnet50);
    }
}
