//! Answers that are long: encoded away from the threads that serve connections, and counted until they are read.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody, to_bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

use super::{
    App, call,
    keys::Key,
    problem::{Code, Problem},
    quota::{Claim, Metered, Quota},
};
use crate::cancel;

/// Answers up to this are not counted: the sockets' own buffers hold as much.
const SMALL: u64 = 64 << 10;

/// The answer's bytes are counted already.
#[derive(Clone, Copy)]
pub(super) struct Counted;

/// Writes the answer of one request, on any thread.
#[derive(Clone)]
pub(super) struct Encoder {
    quota: Arc<Quota>,
    key: Option<Arc<Key>>,
}

/// Bytes with the room that they take.
struct Kept {
    bytes: Bytes,
    _claim: Claim,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A body whose room is free again when its memory is, which is after the last of it was handed to the socket.
fn kept(bytes: Bytes, claim: Claim) -> Body {
    Body::from(Bytes::from_owner(Kept { bytes, _claim: claim }))
}

impl Encoder {
    /// For the answer to the current request.
    pub(super) fn new(app: &App) -> Self {
        Self { quota: Arc::clone(&app.answers), key: call::key() }
    }

    /// `value` as JSON. It takes its room as it grows.
    ///
    /// # Errors
    /// When there is no room.
    pub(super) fn json<T: Serialize>(&self, value: &T) -> Result<Response, Problem> {
        let mut out = Metered::new(Vec::new(), self.quota.claim(self.key.clone()));
        if let Err(error) = serde_json::to_writer(&mut out, value) {
            return Err(out.full().map_or_else(|| Problem::new(Code::Internal, error.to_string()), Problem::from));
        }
        cancel::check()?;
        let (mut bytes, claim) = out.into_parts();
        bytes.shrink_to_fit();
        let mut response = kept(bytes.into(), claim).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.extensions_mut().insert(Counted);
        Ok(response)
    }
}

/// Counts an answer that was made whole.
pub(super) async fn count(app: &App, key: Option<Arc<Key>>, response: Response) -> Response {
    let Some(size) = response.body().size_hint().exact().filter(|size| *size > SMALL) else { return response };
    if response.extensions().get::<Counted>().is_some() {
        return response;
    }
    let mut claim = app.answers.claim(key);
    if let Err(full) = claim.reach(size) {
        return Problem::from(full).into_response();
    }
    let (parts, body) = response.into_parts();
    match to_bytes(body, usize::MAX).await {
        Ok(bytes) => Response::from_parts(parts, kept(bytes, claim)),
        Err(error) => Problem::new(Code::Internal, error.to_string()).into_response(),
    }
}
