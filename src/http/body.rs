//! Reading a request's body: never more than the limit, never longer than the time allowed.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

use super::{
    call,
    problem::{Code, Problem},
};

/// A client that is refused while it still sends should get to read why. So the rest of its body is thrown away
/// for a while before the answer: closing at once would reset the connection under its hands.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The same bound in bytes: what is sent beyond this is a nuisance rather than a mistake.
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
/// that a client that promises much and sends little shuts nobody out.
#[derive(Clone, Debug)]
pub(super) struct BodyMemory(Arc<Semaphore>);

/// A body's part of that memory, held until the request is answered.
pub(super) type Share = OwnedSemaphorePermit;

impl BodyMemory {
    /// Room for `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// A part of it, if there is as much.
    pub(super) fn take(&self, bytes: usize) -> Option<Share> {
        self.0.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}

/// Reads `body` to its end.
///
/// # Errors
/// 413 when it is, or says that it is, longer than the limit; 408 when it takes too long; 429 when all bodies
/// together take too much; 400 when the client broke off.
pub(super) async fn read(parts: &Parts, body: Body, limits: BodyLimits, memory: &BodyMemory) -> Result<(Bytes, Share), Problem> {
    let declared = content_length(&parts.headers);
    if declared.is_some_and(|length| length > limits.bytes as u64) {
        discard(&parts.headers, body).await;
        return Err(too_large(limits.bytes));
    }
    let mut read = Vec::with_capacity(declared.map_or(0, |length| length as usize));
    let mut share = memory.take(0).ok_or_else(no_room)?;
    let mut chunks = body.into_data_stream();
    let until = Instant::now() + limits.time;
    // Whichever comes first. Told as what it is, a body that is late, and not as a server that was too slow.
    let until = call::deadline().map_or(until, |deadline| until.min(deadline));
    // The outer error breaks the connection off, the inner one is for a client that goes on sending.
    let outcome = timeout_at(until, async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Problem::new(Code::BadBody, format!("the body broke off: {error}")))?;
            if read.len() + chunk.len() > limits.bytes {
                return Ok(Err(too_large(limits.bytes)));
            }
            match memory.take(chunk.len()) {
                Some(part) => share.merge(part),
                None => return Ok(Err(no_room())),
            }
            read.extend_from_slice(&chunk);
        }
        Ok::<_, Problem>(Ok(()))
    })
    .await
    .map_err(|_| {
        let seconds = limits.time.as_secs_f64();
        let detail =
            format!("the body did not arrive within {seconds} s (--read-timeout), or before the request's deadline (--request-timeout)");
        Problem::new(Code::BodyTimeout, detail)
    })??;
    match outcome {
        Ok(()) => Ok((read.into(), share)),
        Err(problem) => {
            drop((read, share));
            drain(chunks).await;
            Err(problem)
        }
    }
}

/// Throws away a body that was refused before any of it was read.
pub(super) async fn discard(headers: &HeaderMap, body: Body) {
    // A client that expects to be told sends nothing before it is, and reading would tell it to.
    if !headers.contains_key(header::EXPECT) {
        drain(body.into_data_stream()).await;
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

fn no_room() -> Problem {
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
        let mut share = memory.take(0).unwrap();
        share.merge(memory.take(60).unwrap());
        assert!(memory.take(41).is_none());
        let other = memory.take(40).unwrap();
        drop(share);
        assert!(memory.take(60).is_some());
        drop(other);
        assert!(memory.take(100).is_some());
        assert!(memory.take(101).is_none());
    }
}
