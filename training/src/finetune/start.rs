//! What a run began with: it goes on with the same, or not at all.

use serde::{Deserialize, Serialize};

/// The checkpoint that a run begins with, and how it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// SHA-256 of the files of its weights, in hex.
    pub weights: String,
    /// What the names of the backbone's tensors begin with there.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Its tensors that do not belong to the backbone.
    #[serde(default)]
    pub ignore: Vec<String>,
}

impl Start {
    /// The flag that says something else than it did at this start, and what: `theirs -> ours`.
    pub fn change(&self, now: &Self) -> Option<(&'static str, String)> {
        let names = |start: &Self| {
            let mut names = start.ignore.clone();
            names.sort_unstable();
            names.dedup();
            names
        };
        if self.weights != now.weights {
            let short = |start: &Self| start.weights.chars().take(12).collect::<String>();
            return Some(("--model", format!("SHA-256 {}… -> {}…", short(self), short(now))));
        }
        if self.prefix != now.prefix {
            let said = |start: &Self| start.prefix.clone().unwrap_or_else(|| "none".to_owned());
            return Some(("--prefix", format!("{} -> {}", said(self), said(now))));
        }
        let (theirs, ours) = (names(self), names(now));
        (theirs != ours).then(|| ("--ignore", format!("{theirs:?} -> {ours:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named_by_its_flag() {
        let begun = Start { weights: "ab".into(), prefix: None, ignore: vec!["head".into(), "mask_token".into()] };
        let again = Start { ignore: vec!["mask_token".into(), "head".into(), "head".into()], ..begun.clone() };
        assert_eq!(begun.change(&again), None);
        for (now, flag, change) in [
            (Start { weights: "cd".into(), ..begun.clone() }, "--model", "SHA-256 ab… -> cd…"),
            (Start { prefix: Some("ema".into()), ..begun.clone() }, "--prefix", "none -> ema"),
            (Start { ignore: vec!["head".into()], ..begun.clone() }, "--ignore", r#"["head", "mask_token"] -> ["head"]"#),
        ] {
            assert_eq!(begun.change(&now), Some((flag, change.to_owned())));
        }
    }
}
