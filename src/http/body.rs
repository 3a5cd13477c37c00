//! Reading a request's body: never more than the limit, never longer than the time allowed.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;

use super::problem::{Code, Problem};

/// A client that is refused while it still sends should get to read why. So the rest of its body is thrown away
/// for a while before the answer: closing at once would reset the connection under its hands.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The same bound in bytes: what is sent beyond this is a nuisance rather than a mistake.
const DRAIN_BYTES: usize = 256 << 20;

/// How much of a body is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes.
    pub bytes: usize,
    /// Time for the whole body to arrive.
    pub time: Duration,
}

/// Reads `body` to its end.
///
/// # Errors
/// 413 when it is, or says that it is, longer than the limit; 408 when it takes too long; 400 when the client broke off.
pub(super) async fn read(parts: &Parts, body: Body, limits: BodyLimits) -> Result<Bytes, Problem> {
    let declared = content_length(&parts.headers);
    if declared.is_some_and(|length| length > limits.bytes as u64) {
        discard(&parts.headers, body).await;
        return Err(too_large(limits.bytes));
    }
    let mut read = Vec::with_capacity(declared.map_or(0, |length| length as usize));
    let mut chunks = body.into_data_stream();
    let fits = timeout(limits.time, async {
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Problem::new(Code::BadBody, format!("the body broke off: {error}")))?;
            if read.len() + chunk.len() > limits.bytes {
                return Ok(false);
            }
            read.extend_from_slice(&chunk);
        }
        Ok::<_, Problem>(true)
    })
    .await
    .map_err(|_| {
        let seconds = limits.time.as_secs();
        Problem::new(Code::BodyTimeout, format!("the body did not arrive within {seconds} s"))
    })??;
    if fits {
        Ok(read.into())
    } else {
        discard(&parts.headers, Body::from_stream(chunks)).await;
        Err(too_large(limits.bytes))
    }
}

/// Throws away what the client still sends, within bounds, so that it can read the answer that comes instead.
pub(super) async fn discard(headers: &HeaderMap, body: Body) {
    // Such a client sends nothing before it is told to, and reading would tell it to.
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let mut chunks = body.into_data_stream();
    let mut dropped = 0;
    let drain = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            dropped += chunk.len();
            if dropped > DRAIN_BYTES {
                break;
            }
        }
    };
    // Either way the answer follows now.
    let _ = timeout(DRAIN_TIME, drain).await;
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body is over this server's limit of {limit} bytes (--max-body)"))
}
