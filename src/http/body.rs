//! Reading a request's body: never more than the limit, never longer than the time allowed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream, HttpBody},
    extract::Request,
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::{
    problem::{Code, Problem},
    request_context,
};

/// A client that is answered while it still sends should be able to read the answer. So the rest of its body is read and dropped for a
/// while before it: closing the connection at once would reset it, and the answer would be lost.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The same bound in bytes: a client that sends more does not do so by mistake.
const DRAIN_BYTES: usize = 256 << 20;

/// How much of a body is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Bytes.
    pub bytes: usize,
    /// Time for the whole body to arrive.
    pub time: Duration,
}

/// The memory that the bodies of all requests share. A body takes its part as it arrives, not as it is announced, so
/// that a client that announces much and sends little does not block other clients.
#[derive(Clone, Debug)]
pub(super) struct BodyMemory(Arc<Semaphore>);

/// A body's part of that memory, held until the request is answered.
pub(super) type MemoryPermit = OwnedSemaphorePermit;

impl BodyMemory {
    /// Memory of `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// A part of it, if there is as much.
    pub(super) fn take(&self, bytes: usize) -> Option<MemoryPermit> {
        self.0.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}

/// Counts what a body becomes once it is parsed, as part of the request's memory: values take more than their JSON, and how much more
/// depends on the body.
#[derive(Debug)]
pub(super) struct Meter {
    memory: BodyMemory,
    permit: MemoryPermit,
    /// Bytes that may still be taken.
    left: usize,
}

impl Meter {
    /// For a body whose part of the memory is `permit`, and whose length is at most `largest` bytes: what it becomes may be as large, too.
    pub(super) fn new(memory: BodyMemory, permit: MemoryPermit, largest: usize) -> Self {
        Self { memory, permit, left: largest }
    }

    /// Takes `bytes` for what was read.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Problem> {
        let refused = || {
            let detail = "what the body holds takes much more memory than its bytes: send it in several requests (--max-body)";
            Problem::new(Code::BodyTooLarge, detail)
        };
        self.left = self.left.checked_sub(bytes).ok_or_else(refused)?;
        self.permit.merge(self.memory.take(bytes).ok_or_else(memory_exhausted)?);
        Ok(())
    }

    /// All that was taken.
    pub(super) fn into_permit(self) -> MemoryPermit {
        self.permit
    }
}

/// Refuses bodies that are compressed.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let detail = format!("a body with Content-Encoding {encoding:?} is not read: send it without one");
            Err(Problem::new(Code::UnsupportedMediaType, detail))
        }
        _ => Ok(()),
    }
}

/// Reads `body` to its end.
///
/// # Errors
/// 413 when it is, or says that it is, longer than the limit; 408 when it takes too long; 429 when all bodies
/// together take too much; 400 when the client broke off.
pub(super) async fn read(parts: &Parts, body: Body, limits: BodyLimits, memory: &BodyMemory) -> Result<(Bytes, MemoryPermit), Problem> {
    let declared = content_length(&parts.headers);
    if declared.is_some_and(|length| length > limits.bytes as u64) {
        return Err(too_large(limits.bytes));
    }
    let most = declared.map_or(limits.bytes, |length| length as usize);
    let mut read = Vec::new();
    let mut permit = memory.take(0).ok_or_else(memory_exhausted)?;
    let mut chunks = body.into_data_stream();
    let until = Instant::now() + limits.time;
    // Whichever comes first. The error is that of a body that is late, not that of a server that is too slow.
    let until = request_context::deadline().map_or(until, |deadline| until.min(deadline));
    timeout_at(until, async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Problem::new(Code::BadBody, format!("the body broke off: {error}")))?;
            if read.len() + chunk.len() > limits.bytes {
                return Err(too_large(limits.bytes));
            }
            grow(&mut read, chunk.len(), most, &mut permit, memory)?;
            read.extend_from_slice(&chunk);
        }
        Ok(())
    })
    .await
    .map_err(|_| {
        let seconds = limits.time.as_secs_f64();
        let detail =
            format!("the body did not arrive within {seconds} s (--read-timeout), or before the request's deadline (--request-timeout)");
        Problem::new(Code::BodyTimeout, detail)
    })??;
    Ok((read.into(), permit))
}

/// Makes room in `read` for `more` bytes. All that is set aside is counted, and it follows what has arrived: a client may announce
/// much and send little. Twice as much as before where that is not beyond `most`, so that a body is moved few times.
fn grow(read: &mut Vec<u8>, more: usize, most: usize, permit: &mut MemoryPermit, memory: &BodyMemory) -> Result<(), Problem> {
    let (now, needed) = (read.capacity(), read.len() + more);
    if needed <= now {
        return Ok(());
    }
    let doubled = needed.max((2 * now).min(most));
    // Where other bodies leave no room for twice as much, there may still be enough.
    let taken = [doubled, needed].into_iter().find_map(|capacity| Some((capacity, memory.take(capacity - now)?)));
    let (capacity, part) = taken.ok_or_else(memory_exhausted)?;
    permit.merge(part);
    read.reserve_exact(capacity - read.len());
    Ok(())
}

/// Lets requests through, and reads on where they were answered before their body had arrived: an unknown route, a missing key, a
/// route without a body, a body that is too large.
pub(super) async fn drain_after(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let left = Arc::default();
    let is_expected = request.headers().contains_key(header::EXPECT);
    let watched = |body: Body| TrackedBody { body: Some(body.into_data_stream()), is_wanted: !is_expected, left: Arc::clone(&left) };
    let response = next.run(request.map(|body| Body::from_stream(watched(body)))).await;
    let rest = left.lock().take();
    // A client that was too slow is not read any further.
    if let Some(rest) = rest.filter(|_| response.status() != StatusCode::REQUEST_TIMEOUT) {
        drain(rest).await;
    }
    response
}

/// A body that, when it is dropped, leaves behind what was not read of it.
struct TrackedBody {
    /// None once it has ended or broken off.
    body: Option<BodyDataStream>,
    /// A client that expects to be told to go on sends nothing before, and the first read tells it to.
    is_wanted: bool,
    left: Arc<Mutex<Option<BodyDataStream>>>,
}

impl Stream for TrackedBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.is_wanted = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let chunk = ready!(body.poll_next_unpin(context));
        if !matches!(chunk, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(chunk)
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|rest| self.is_wanted && !rest.is_end_stream());
        *self.left.lock() = rest;
    }
}

/// Throws away what the client still sends, within bounds, so that it can read the answer that comes instead.
async fn drain(mut chunks: BodyDataStream) {
    let mut dropped = 0;
    let all = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            dropped += chunk.len();
            if dropped > DRAIN_BYTES {
                break;
            }
        }
    };
    // Either way the answer follows now.
    let _ = timeout(DRAIN_TIME, all).await;
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body is over this server's limit of {limit} bytes (--max-body)"))
}

fn memory_exhausted() -> Problem {
    let mut problem = Problem::new(
        Code::QueueFull,
        "the bodies of other requests fill the memory that there is for them (--body-memory); try again in a second",
    );
    problem.retry_after = Some(Duration::from_secs(1));
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_as_it_is_used_and_given_back() {
        let memory = BodyMemory::new(100);
        let mut permit = memory.take(0).unwrap();
        permit.merge(memory.take(60).unwrap());
        assert!(memory.take(41).is_none());
        let other = memory.take(40).unwrap();
        drop(permit);
        assert!(memory.take(60).is_some());
        drop(other);
        assert!(memory.take(100).is_some());
        assert!(memory.take(101).is_none());
    }

    #[test]
    fn room_follows_what_arrived_and_is_counted() {
        let memory = BodyMemory::new(1000);
        let (mut read, mut permit) = (Vec::new(), memory.take(0).unwrap());
        let mut arrive = |bytes: usize| {
            grow(&mut read, bytes, 400, &mut permit, &memory).unwrap();
            read.resize(read.len() + bytes, 0);
            (read.capacity(), permit.num_permits())
        };
        assert_eq!(arrive(1), (1, 1));
        assert_eq!(arrive(99), (100, 100));
        assert_eq!(arrive(1), (200, 200));
        // Never more than was announced, while that holds.
        assert_eq!((arrive(199), arrive(100)), ((400, 400), (400, 400)));
        // No room for twice as much is no reason to refuse.
        let others = memory.take(590).unwrap();
        assert_eq!(arrive(9), (409, 409));
        assert!(grow(&mut read, 11, 1000, &mut permit, &memory).is_err());
        drop((others, permit));
        assert!(memory.take(1000).is_some());
    }
}
