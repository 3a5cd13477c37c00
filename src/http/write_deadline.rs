//! Connections whose client does not read are closed: what they wait for takes memory, disk and a place.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// Bytes that a client takes within the time allowed, or all that is left.
const LEAST: u64 = 64 << 10;
/// Bytes a second that a client takes on the whole: [`LEAST`] now and then would hold an answer for hours.
pub(super) const SLOWEST: f64 = 32.0 * 1024.0;

/// A stream on which writing fails where the other side takes too little for too long.
pub(super) struct WriteDeadline<S> {
    stream: S,
    limit: Duration,
    stall: Option<Stall>,
}

/// Since the socket was full.
struct Stall {
    timer: Pin<Box<Sleep>>,
    began: Instant,
    taken: u64,
    /// Of them, since the timer was set.
    lately: u64,
}

impl Stall {
    fn new(limit: Duration) -> Self {
        let began = Instant::now();
        Self { timer: Box::pin(sleep_until(began + limit)), began, taken: 0, lately: 0 }
    }

    /// Counts what the client took. It gets time for the next part, as long as it is not too slow on the whole.
    fn take(&mut self, bytes: u64, limit: Duration) {
        self.taken += bytes;
        self.lately += bytes;
        if self.lately >= LEAST {
            self.lately = 0;
            self.timer.as_mut().reset((Instant::now() + limit).min(self.began + allowed(limit, self.taken)));
        }
    }
}

/// Time in which a client takes so many bytes.
pub(super) fn allowed(limit: Duration, bytes: u64) -> Duration {
    limit + Duration::from_secs_f64(bytes as f64 / SLOWEST)
}

impl<S> WriteDeadline<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stall: None }
    }

    /// Looks at the outcome of a write.
    fn watch(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            if let (Some(stall), Ok(written)) = (&mut self.stall, &written) {
                stall.take(*written as u64, self.limit);
            }
            return Poll::Ready(written);
        }
        let limit = self.limit;
        let stall = self.stall.get_or_insert_with(|| Stall::new(limit));
        ready!(stall.timer.as_mut().poll(context));
        let (seconds, taken) = (stall.began.elapsed().as_secs_f64(), stall.taken);
        tracing::warn!("a connection was closed: its client took {taken} bytes of an answer in {seconds:.1} s (--write-timeout)");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Asked for once there is nothing left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stall = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };

    use super::*;

    /// Never reached by these tests, however busy the machine is.
    const LONG: Duration = Duration::from_hours(1);
    const PART: usize = LEAST as usize;
    const SHORT: Duration = Duration::from_millis(50);
    /// An error instead of a test that never ends.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    /// One write, which never waits: what was written, if anything could be.
    async fn write(ours: &mut WriteDeadline<DuplexStream>, bytes: &[u8]) -> Option<usize> {
        poll_fn(|context| match Pin::new(&mut *ours).poll_write(context, bytes) {
            Poll::Ready(written) => Poll::Ready(Some(written.unwrap())),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn the_time_starts_anew_for_a_client_that_reads_and_stops_when_all_is_written() {
        let (ours, mut theirs) = duplex(PART);
        let mut ours = WriteDeadline::new(ours, LONG);
        let part = vec![0; PART];
        assert_eq!(write(&mut ours, &part).await, Some(PART));
        assert!(ours.stall.is_none(), "nothing waits yet");
        assert_eq!(write(&mut ours, &part).await, None);
        assert!(ours.stall.is_some());
        // A byte is not enough.
        theirs.read_u8().await.unwrap();
        assert_eq!(write(&mut ours, &part).await, Some(1));
        assert_eq!(ours.stall.as_ref().unwrap().taken, 1);
        theirs.read_exact(&mut vec![0; PART]).await.unwrap();
        assert_eq!(write(&mut ours, &part).await, Some(PART));
        assert_eq!(ours.stall.as_ref().unwrap().lately, 0, "as much as it must take, and the time starts anew");
        assert_eq!(ours.stall.as_ref().unwrap().taken, LEAST + 1);
        // An idle connection is none that does not read.
        assert_eq!(write(&mut ours, &part).await, None);
        ours.flush().await.unwrap();
        assert!(ours.stall.is_none());
    }

    #[tokio::test]
    async fn a_client_that_takes_less_is_cut_off() {
        for taken in [0, PART / 2] {
            let (ours, mut theirs) = duplex(PART);
            let mut ours = WriteDeadline::new(ours, SHORT);
            let reader = tokio::spawn(async move {
                theirs.read_exact(&mut vec![0; taken]).await.unwrap();
                theirs
            });
            let error = timeout(TEST_TIMEOUT, ours.write_all(&vec![0; 2 * PART])).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            reader.await.unwrap();
        }
    }

    #[tokio::test]
    async fn parts_that_come_in_time_do_not_add_up_to_hours() {
        let mut stall = Stall::new(LONG);
        let mut last = stall.timer.deadline();
        // One part each time, and no time passes: the deadline moves by what the slowest client takes for it.
        for part in 1..=3_u32 {
            stall.take(LEAST, Duration::from_secs(1));
            let until = stall.timer.deadline();
            assert!(until < last && until <= stall.began + Duration::from_secs(1) + Duration::from_secs(2) * part);
            last = stall.began + LONG;
        }
        assert_eq!(allowed(Duration::from_mins(1), 16 << 20), Duration::from_secs(60 + 512));
    }
}
