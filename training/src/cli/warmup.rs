//! A warm-up that fits the run.

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Whether a flag stands on the command line; `name` has no leading dashes.
pub(super) fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(&name.replace('-', "_")) == Some(ValueSource::CommandLine)
}

/// Cuts a warm-up that comes from defaults or settings to the epochs that were asked for: who shortens a run need not know of it. One that
/// was asked for stays, and is refused later where it does not fit.
pub(super) fn cut(warmup: &mut usize, epochs: usize, matches: &ArgMatches) {
    if is_given(matches, "epochs") && !is_given(matches, "warmup-epochs") && *warmup > epochs {
        tracing::info!("the warm-up of {warmup} epochs is cut to the {epochs} of the run");
        *warmup = epochs;
    }
}

/// Cuts the epochs with a frozen backbone in the same way: one epoch at least is for the backbone.
pub(super) fn cut_freeze(frozen: &mut usize, epochs: usize, matches: &ArgMatches) {
    if is_given(matches, "epochs") && !is_given(matches, "freeze-backbone-epochs") && *frozen > 0 && *frozen >= epochs {
        *frozen = epochs.saturating_sub(1);
        tracing::info!("the backbone is frozen for {frozen} of the {epochs} epochs of the run");
    }
}
