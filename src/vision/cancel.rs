//! Stopping work that no caller waits for any more.
//!
//! A search, a map or the drawing of masks runs on a thread that may compute, for a future that waits for it. When that
//! future is dropped, since its client has left or its deadline has passed, the thread's token is cancelled, and long loops
//! look at it every now and then. No function needs a parameter for it: the token belongs to the thread.
//! Loops that are spread over other threads take it along ([`current`]).
//!
//! What stops early returns something half done or an error. Neither is ever seen: the future that would have seen it is gone.
//!
//! ```
//! use dino_vision::cancel::{check, scope};
//! use tokio_util::sync::CancellationToken;
//!
//! let token = CancellationToken::new();
//! token.cancel();
//! let rows = scope(token, || (0..1_000_000).map_while(|row| check().ok().map(|()| row)).count());
//! assert_eq!(rows, 0);
//! ```

use std::cell::RefCell;

use tokio_util::sync::CancellationToken;

thread_local! {
    /// Never cancelled outside of [`scope`].
    static CURRENT: RefCell<CancellationToken> = RefCell::default();
}

/// The work was stopped, since no caller waits for it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work was stopped: its caller has left, or its deadline has passed")]
pub struct Cancelled;

/// Runs `work` with `token` as this thread's.
pub fn scope<T>(token: CancellationToken, work: impl FnOnce() -> T) -> T {
    /// Puts the token of before back, also where `work` panics: threads of a pool live on.
    struct Before(CancellationToken);

    impl Drop for Before {
        fn drop(&mut self) {
            CURRENT.set(std::mem::take(&mut self.0));
        }
    }

    let _before = Before(CURRENT.replace(token));
    work()
}

/// This thread's token, for loops that are spread over other threads.
pub fn current() -> CancellationToken {
    CURRENT.with_borrow(CancellationToken::clone)
}

/// Whether this thread's work is to be stopped.
pub fn is_cancelled() -> bool {
    CURRENT.with_borrow(CancellationToken::is_cancelled)
}

/// An error where this thread's work is to be stopped.
///
/// # Errors
/// [`Cancelled`].
pub fn check() -> Result<(), Cancelled> {
    if is_cancelled() { Err(Cancelled) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_the_token_of_its_scope_and_gets_the_one_before_back() {
        let token = CancellationToken::new();
        scope(token.clone(), || {
            assert_eq!(check(), Ok(()));
            token.cancel();
            assert_eq!(check(), Err(Cancelled));
            assert!(current().is_cancelled());
            scope(CancellationToken::new(), || assert!(!is_cancelled()));
            assert!(is_cancelled());
        });
        assert!(!is_cancelled());
        let panicked = std::panic::catch_unwind(|| scope(token, || std::panic::resume_unwind(Box::new(()))));
        assert!(panicked.is_err() && !is_cancelled());
    }
}
