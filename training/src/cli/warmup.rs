//! A warm-up that fits the run.

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Whether a flag stands on the command line; `name` has no leading dashes.
pub(super) fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(&name.replace('-', "_")) == Some(ValueSource::CommandLine)
}

/// Cuts a warm-up that comes from defaults or settings, so that one of the epochs of `--epochs` is trained at the full rate: a run that is
/// all warm-up hardly learns, and of one step not at all. A warm-up from the command line stays, and is refused later where it does not fit.
pub(super) fn cut(warmup: &mut usize, epochs: usize, matches: &ArgMatches) {
    if is_given(matches, "epochs") && !is_given(matches, "warmup-epochs") && *warmup > 0 && *warmup >= epochs {
        let fits = epochs.saturating_sub(1);
        tracing::info!("the warm-up is cut from {warmup} epochs to {fits}, because the run has {epochs}");
        *warmup = fits;
    }
}

/// Cuts the epochs with a frozen backbone in the same way: one epoch at least is for the backbone.
pub(super) fn cut_freeze(frozen: &mut usize, epochs: usize, matches: &ArgMatches) {
    if is_given(matches, "epochs") && !is_given(matches, "freeze-backbone-epochs") && *frozen > 0 && *frozen >= epochs {
        *frozen = epochs.saturating_sub(1);
        tracing::info!("the backbone is frozen for {frozen} of the {epochs} epochs of the run");
    }
}
