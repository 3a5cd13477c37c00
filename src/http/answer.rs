//! Answers that are long: encoded away from the threads that serve connections, and counted until they are read.

use std::{io, sync::Arc};

use axum::{
    Extension,
    body::{Body, HttpBody, to_bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

use super::{
    App,
    keys::Key,
    problem::{Code, Problem},
    quota::{BudgetExceeded, Quota, Reservation, STEP},
    request_context,
    response::JsonBody,
};
use dino_vision::cancel;

/// Answers up to this are not counted: the sockets' own buffers hold as much.
const SMALL: u64 = 64 << 10;

/// The answer's bytes are counted already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted;

/// Writes the answer of one request, on any thread.
#[derive(Clone)]
pub(super) struct Encoder {
    quota: Arc<Quota>,
    key: Option<Arc<Key>>,
}

/// Bytes with the memory that was reserved for them.
struct CountedBytes {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for CountedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body whose reservation ends when its memory is free, which is after the last byte was handed to the socket.
fn counted_body(bytes: Bytes, reservation: Reservation) -> Body {
    Body::from(Bytes::from_owner(CountedBytes { bytes, _reservation: reservation }))
}

impl Encoder {
    /// For the answer to the current request.
    pub(super) fn new(app: &App) -> Self {
        Self { quota: Arc::clone(&app.answers), key: request_context::key() }
    }

    /// `value` as JSON. Memory is reserved as it grows.
    ///
    /// # Errors
    /// When there is no memory left for answers.
    pub(super) fn json<T: Serialize>(&self, value: &T) -> Result<JsonBody<T>, Problem> {
        let mut out = Buffer { bytes: Vec::new(), reservation: self.quota.reserve(self.key.clone()), exceeded: None };
        if let Err(error) = serde_json::to_writer(&mut out, value) {
            return Err(out.exceeded.map_or_else(|| Problem::new(Code::Internal, error.to_string()), Problem::from));
        }
        cancel::check()?;
        let Buffer { mut bytes, mut reservation, .. } = out;
        bytes.shrink_to_fit();
        reservation.shrink_to(bytes.capacity() as u64);
        let mut response = counted_body(bytes.into(), reservation).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.extensions_mut().insert(Counted);
        Ok(JsonBody::of(response))
    }

    /// A body of `size` bytes, which `fill` appends. Their memory is reserved before it is taken.
    ///
    /// # Errors
    /// When there is no memory left for answers.
    pub(super) fn bytes(&self, size: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(Extension<Counted>, Body), Problem> {
        let mut reservation = self.quota.reserve(self.key.clone());
        reservation.reach(size as u64)?;
        let mut bytes = Vec::with_capacity(size);
        fill(&mut bytes);
        debug_assert_eq!(bytes.len(), size);
        cancel::check()?;
        Ok((Extension(Counted), counted_body(bytes.into(), reservation)))
    }
}

/// Bytes that are written, whose memory is reserved before it is taken.
struct Buffer {
    bytes: Vec<u8>,
    reservation: Reservation,
    /// Why it stopped.
    exceeded: Option<BudgetExceeded>,
}

impl io::Write for Buffer {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let (now, needed) = (self.bytes.capacity(), self.bytes.len() + more.len());
        if needed > now {
            let step = needed.next_multiple_of(STEP as usize);
            // Twice as much, so that it is moved few times; where there is not that much, there may still be enough.
            for capacity in [step.max(2 * now), step] {
                self.exceeded = self.reservation.reach(capacity as u64).err();
                if self.exceeded.is_none() {
                    self.bytes.reserve_exact(capacity - self.bytes.len());
                    break;
                }
            }
            if let Some(exceeded) = self.exceeded {
                return Err(io::Error::other(exceeded));
            }
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts an answer that was made whole.
pub(super) async fn count(app: &App, key: Option<Arc<Key>>, response: Response) -> Response {
    let Some(size) = response.body().size_hint().exact().filter(|size| *size > SMALL) else { return response };
    if response.extensions().get::<Counted>().is_some() {
        return response;
    }
    let mut reservation = app.answers.reserve(key);
    if let Err(full) = reservation.reach(size) {
        return Problem::from(full).into_response();
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(bytes) => Response::from_parts(parts, counted_body(bytes, reservation)),
        Err(error) => Problem::new(Code::Internal, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::quota::Budget, *};

    #[test]
    fn memory_is_reserved_before_it_is_taken_and_given_back_after_it() {
        let encoder = Encoder { quota: Arc::new(Quota::new(Budget::Answers, 2 * STEP)), key: None };
        let size = STEP as usize;
        let answer = || encoder.bytes(size + 1, |bytes| bytes.resize(size + 1, 7)).map(IntoResponse::into_response);
        let first = answer().unwrap();
        assert!(first.extensions().get::<Counted>().is_some());
        assert_eq!(first.body().size_hint().exact(), Some(STEP + 1));
        let unmade = || -> Response { encoder.bytes(size, |_| panic!("it was made")).unwrap_err().into_response() };
        assert_eq!(unmade().status(), 429);
        drop(first);
        drop(answer().unwrap());
        assert_eq!(encoder.bytes(3 * size, |_| panic!("it was made")).map(|_| ()).unwrap_err().code, Code::AnswerTooLarge);
    }
}
