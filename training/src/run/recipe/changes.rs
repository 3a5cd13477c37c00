//! What changed between two recipes, and what may not change in a run that goes on.

use super::Recipe;

impl Recipe {
    /// Names of settings that differ from another recipe's, as `name: theirs -> ours`.
    pub fn differences(&self, other: &Self) -> Vec<(String, String)> {
        let table = |recipe: &Self| serde_json::to_value(recipe).ok().and_then(|v| v.as_object().cloned()).unwrap_or_default();
        let (ours, theirs) = (table(self), table(other));
        let changed = ours.iter().filter(|(name, value)| theirs.get(*name) != Some(value));
        changed
            .map(|(name, value)| (name.clone(), format!("{} -> {value}", theirs.get(name).unwrap_or(&serde_json::Value::Null))))
            .collect()
    }
}

/// Settings that shape the tensors of a checkpoint, or the meaning of its step number: a run cannot go on with others.
pub const FIXED: [&str; 25] = [
    "arch",
    "method",
    "stem",
    "registers",
    "ffn-layer",
    "ffn-hidden",
    "pos-embed",
    "rope-base",
    "layer-scale",
    "ibot-loss-weight",
    "ibot-separate-head",
    "ibot-out-dim",
    "patch-size",
    "dim",
    "depth",
    "heads",
    "out-dim",
    "norm-last-layer",
    "use-bn-in-head",
    "optimizer",
    "lora-rank",
    "head-hidden-dim",
    "head-bottleneck-dim",
    "global-crops-size",
    "seed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixed_setting_exists() {
        let table = serde_json::to_value(Recipe::default()).unwrap();
        for name in FIXED {
            assert!(table.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn differences_name_what_changed() {
        let recipe = Recipe { epochs: 7, ..Recipe::default() };
        assert_eq!(recipe.differences(&Recipe::default()), [("epochs".to_owned(), "100 -> 7".to_owned())]);
    }
}
