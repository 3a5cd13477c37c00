//! What can be wrong with a checkpoint.

use std::path::PathBuf;

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file is a link to one that is gone.
    #[error("{0}")]
    Link(String),
    /// There is nothing at this path that is a checkpoint.
    #[error("no checkpoint in {path}: {reason}")]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// What was expected there.
        reason: String,
    },
    /// The file is cut, malformed or hostile.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A sound file of a kind that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// No known layout has these tensor names.
    #[error(
        "no known layout has these tensor names: {}. \
         Known are the public DINO, DINOv2 and DINOv3 releases, Hugging Face's, timm's, and what `dino-train train` writes",
        list(.0)
    )]
    UnknownLayout(Vec<String>),
    /// The layout is known, and some tensors do not fit it.
    #[error("the checkpoint does not fit the layout {layout}:{}{}", lines("missing", .missing), lines("does not fit", .wrong))]
    Misfit {
        /// The layout that was recognised.
        layout: &'static str,
        /// Tensors that the layout needs and the checkpoint lacks, by their full names.
        missing: Vec<String>,
        /// Tensors of another shape than the layout says, with both shapes, and those that cannot be read, with the reason.
        wrong: Vec<String>,
    },
    /// The layout is known, and the network has more than it.
    #[error(
        "the checkpoint has tensors that the layout {layout} does not use, so its network computes something else than an export of it would. \
         Name those that are known not to belong to the backbone with --ignore NAME (one tensor, or all below NAME):{}",
        lines("not used", .names)
    )]
    Unused {
        /// The layout that was recognised.
        layout: &'static str,
        /// Tensors that it has no place for, by their full names.
        names: Vec<String>,
    },
    /// Weights that are NaN or infinite. A model made of them would answer NaN.
    #[error("these tensors hold NaN or infinite values: {}", list(.0))]
    NotFinite(Vec<String>),
    /// The number of attention heads cannot be told from the tensors.
    #[error("{0}; say how many heads there are with --heads N")]
    Heads(String),
}

/// How many names an error lists before it only counts.
const LISTED: usize = 40;

fn list(names: &[String]) -> String {
    let shown = &names[..names.len().min(LISTED)];
    let more = names.len() - shown.len();
    let end = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &end
}

pub(super) fn lines(what: &str, names: &[String]) -> String {
    names.iter().fold(String::new(), |text, name| text + "\n  " + what + ": " + name)
}
