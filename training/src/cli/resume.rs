//! `--resume`, alone or with a word.

use clap::ValueEnum;

/// How a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Resume {
    /// From the newest checkpoint in --out; where it holds none, the run starts
    Auto,
}
