//! Keeps panics of third-party decoders inside, and out of the log.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; `None` if it panicked.
///
/// Decoders have had assertions that hostile bytes can trip. This is the last line of defence, not a way to report
/// errors: the panic is not printed, since its message would be of the attacker's choosing.
pub(super) fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                print(info);
            }
        }));
    });

    let before = QUIET.replace(true);
    // What `work` borrows is only read by it, or dropped with it: nothing half-changed can be seen afterwards.
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::quietly;

    #[test]
    fn a_panic_becomes_none_and_later_work_goes_on() {
        assert_eq!(quietly(|| 1), Some(1));
        assert_eq!(quietly(|| -> i32 { panic!("from a decoder") }), None);
        assert_eq!(quietly(|| 2), Some(2));
    }
}
