//! What SIGTERM and SIGINT do to a program that has nothing to finish first.
//!
//! A program that has its own handlers is not concerned: the server lets requests finish.
//!
//! ```
//! use std::{thread, time::Duration};
//!
//! let _starting = dino_program::signals::end_while_starting()?;
//! signal_hook::low_level::raise(signal_hook::consts::SIGTERM)?;
//! thread::sleep(Duration::from_secs(60));
//! unreachable!("the signal ends the process with exit code 0");
//! # Ok::<(), std::io::Error>(())
//! ```

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag::register_conditional_shutdown,
};

/// What a shell shows for a program that a signal has ended: this, and the signal's number.
const ENDED_BY_SIGNAL: i32 = 128;

/// The time in which a server starts.
#[derive(Debug)]
#[must_use = "the process has to be told when it has started"]
pub struct Starting(Arc<AtomicBool>);

/// From here on, until [`Starting::is_over`], SIGTERM and SIGINT end the process at once with exit code 0, whatever it waits for: a
/// model's graph, a file system, a database. Without this they would be left to the system, which lets process 1 of a container ignore
/// them.
///
/// # Errors
/// When the handlers cannot be set up.
pub fn end_while_starting() -> io::Result<Starting> {
    let starting = Arc::new(AtomicBool::new(true));
    for signal in [SIGTERM, SIGINT] {
        register_conditional_shutdown(signal, 0, starting.clone())?;
    }
    Ok(Starting(starting))
}

impl Starting {
    /// Leaves the signals to handlers that have been set up in the meantime.
    pub fn is_over(self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Lets SIGTERM and SIGINT end a program that is process 1 of a container. Everywhere else the system sees to that.
pub fn end_as_process_1() {
    if std::process::id() != 1 {
        return;
    }
    for signal in [SIGTERM, SIGINT] {
        let registered = register_conditional_shutdown(signal, ENDED_BY_SIGNAL + signal, Arc::new(AtomicBool::new(true)));
        if let Err(error) = registered {
            tracing::warn!(%error, signal, "the signal is ignored");
        }
    }
}
