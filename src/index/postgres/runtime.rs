//! The runtime of the connections, for threads that may block.

use tokio::runtime::Builder;

use super::super::Error;

/// A runtime of one thread, which connections to one or more databases share.
pub(super) struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    pub(super) fn new() -> Result<Self, Error> {
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("postgres").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Calls `work` where it may make what belongs to a runtime.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let _inside = self.runtime().enter();
        work()
    }

    /// Waits on this thread.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime().block_on(work)
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.0.as_ref().expect("only dropping takes it")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Dropping it would block, which panics on threads of another runtime.
            runtime.shutdown_background();
        }
    }
}
