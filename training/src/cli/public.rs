//! Command lines of the public script: its spelling, and those of its flags that mean something else here.

use std::ffi::OsString;

use anyhow::{Result, ensure};

/// Flags of the public script without a setting of the same name.
#[derive(Debug, clap::Args)]
pub struct Public {
    /// Mixed precision in the public script's words: true is --precision auto, false is --precision f32
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), conflicts_with = "precision", help_heading = "Optimisation")]
    pub(super) use_fp16: Option<bool>,
    /// Where processes meet. Only env:// is taken: MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE say it, as torchrun sets them
    #[arg(long, value_name = "URL", help_heading = "Run")]
    dist_url: Option<String>,
    /// Taken and not used: the environment's LOCAL_RANK counts
    #[arg(long, value_name = "N", hide = true)]
    local_rank: Option<usize>,
}

impl Public {
    /// Checks what cannot be done in the public script's way.
    ///
    /// # Errors
    /// Says what to use instead.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(url) = &self.dist_url {
            ensure!(
                url == "env://",
                "--dist-url {url} is not supported: set MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE in the environment instead"
            );
        }
        Ok(())
    }
}

/// The precision that `use_fp16` stands for.
pub(super) fn precision(use_fp16: bool) -> toml::Value {
    toml::Value::from(if use_fp16 { "auto" } else { "f32" })
}

/// Flags spelt as in the public script, `--patch_size 16`, in our spelling, `--patch-size 16`. Values stay as they are.
pub fn with_dashes(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut flags = true;
    let translate = |argument: OsString| {
        flags &= argument != "--";
        match argument.to_str() {
            Some(text) if flags && text.starts_with("--") => {
                let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                format!("{}{value}", name.replace('_', "-")).into()
            }
            _ => argument,
        }
    };
    arguments.map(translate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_their_spelling_and_values_do_not() {
        let line = ["x_y", "--patch_size", "a_b", "--data_path=c_d/--e_f", "-k_l", "--", "--g_h"];
        let translated = with_dashes(line.into_iter().map(OsString::from));
        assert_eq!(translated, ["x_y", "--patch-size", "a_b", "--data-path=c_d/--e_f", "-k_l", "--", "--g_h"]);
    }
}
