//! Asking all databases at the same time.

use std::panic::resume_unwind;
use std::thread;

use tracing::Span;

use super::super::super::Error;
use dino_vision::cancel;

/// What `ask` answers for each of `parts`, in their order: each on a thread of its own but the first, with this thread's cancellation.
/// The first error in that order where there is one.
pub(super) fn each<P: Sync, T: Send>(parts: &[P], ask: impl Fn(&P) -> Result<T, Error> + Sync) -> Result<Vec<T>, Error> {
    let Some((first, others)) = parts.split_first() else { return Ok(Vec::new()) };
    let (token, span, ask) = (cancel::current(), Span::current(), &ask);
    thread::scope(|scope| {
        let threads: Vec<_> = others
            .iter()
            .map(|part| {
                let (token, span) = (token.clone(), span.clone());
                let work = move || span.in_scope(|| cancel::scope(token, || ask(part)));
                thread::Builder::new().name("shard".to_owned()).spawn_scoped(scope, work)
            })
            .collect();
        let own = ask(first);
        // All of them are waited for, also after an error.
        let theirs: Vec<_> = threads
            .into_iter()
            .map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(error) => Err(error.into()),
            })
            .collect();
        std::iter::once(own).chain(theirs).collect()
    })
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn answers_keep_their_order_and_threads_the_cancellation() {
        assert_eq!(each(&[1, 2, 3], |part| Ok(part * 2)).unwrap(), [2, 4, 6]);
        let failed = each(&[1, 2, 3], |part| if *part > 1 { Err(Error::NoCollection(part.to_string())) } else { Ok(()) });
        assert_eq!(failed.unwrap_err().to_string(), "there is no collection \"2\"");
        let token = CancellationToken::new();
        token.cancel();
        let seen = cancel::scope(token, || each(&[1, 2], |_| Ok(cancel::is_cancelled())));
        assert_eq!(seen.unwrap(), [true, true]);
    }
}
