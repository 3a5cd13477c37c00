//! Connections whose client does not read are closed: what they wait for takes memory, disk and a place.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Bytes that a client takes within the time allowed, or all that is left.
const LEAST: usize = 64 << 10;

/// A stream on which writing fails where the other side takes too little for too long.
pub(super) struct WriteDeadline<S> {
    stream: S,
    limit: Duration,
    stall: Option<Stall>,
}

/// Since the socket was full.
struct Stall {
    timer: Pin<Box<Sleep>>,
    taken: usize,
}

impl<S> WriteDeadline<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, stall: None }
    }

    /// Looks at the outcome of a write.
    fn watch(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            if let (Some(stall), Ok(written)) = (&mut self.stall, &written) {
                stall.taken += written;
                if stall.taken >= LEAST {
                    self.stall = None;
                }
            }
            return Poll::Ready(written);
        }
        let limit = self.limit;
        let stall = self.stall.get_or_insert_with(|| Stall { timer: Box::pin(sleep(limit)), taken: 0 });
        ready!(stall.timer.as_mut().poll(context));
        let (seconds, taken) = (limit.as_secs_f64(), stall.taken);
        tracing::warn!("a connection was closed: its client took {taken} bytes of an answer in {seconds} s (--write-timeout)");
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn who_reads_is_waited_for_and_who_does_not_is_cut_off() {
        let (ours, mut theirs) = duplex(LEAST);
        let mut ours = WriteDeadline::new(ours, LIMIT);
        let reader = tokio::spawn(async move {
            let mut part = vec![0; LEAST];
            for _ in 0..3 {
                tokio::time::sleep(LIMIT / 2).await;
                theirs.read_exact(&mut part).await.unwrap();
            }
            theirs
        });
        ours.write_all(&vec![0; 3 * LEAST]).await.unwrap();
        ours.flush().await.unwrap();
        let mut theirs = reader.await.unwrap();
        // An idle connection is none that does not read.
        tokio::time::sleep(LIMIT + LIMIT / 10).await;
        ours.write_all(&vec![0; LEAST]).await.unwrap();
        // A byte now and then is not enough.
        let dripping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LIMIT / 20).await;
                if theirs.read_u8().await.is_err() {
                    break;
                }
            }
        });
        let error = ours.write_all(&vec![0; LEAST]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // It would go on with what is on its way.
        dripping.abort();
    }
}
