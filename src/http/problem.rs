//! Errors as RFC 9457 `application/problem+json`.

use std::{borrow::Cow, time::Duration};

use aide::OperationOutput;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

/// Bytes of a detail that are kept.
const MOST: usize = 600;
/// How many of them are the last ones.
const TAIL: usize = 200;

/// Declares the error codes, each below its status.
macro_rules! codes {
    ($($status:ident { $($(#[doc = $doc:literal])+ $code:ident,)+ })+) => {
        /// Every kind of error that the server answers with. Names and statuses are part of the public contract: a
        /// client may branch on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[schemars(rename = "ErrorCode")]
        pub enum Code {
            $($($(#[doc = $doc])+ $code,)+)+
        }

        impl Code {
            /// All of them, by status.
            pub(super) const ALL: &[Self] = &[$($(Self::$code,)+)+];

            /// Its HTTP status, always the same.
            pub fn status(self) -> StatusCode {
                match self {
                    $($(Self::$code)|+ => StatusCode::$status,)+
                }
            }
        }
    };
}

codes! {
    BAD_REQUEST {
        /// An option is unknown, or its value cannot be used.
        BadParameter,
        /// The body is no JSON, or not of the form that the route asks for.
        BadJson,
        /// The body is no `multipart/form-data`, or has parts that are not pictures.
        BadMultipart,
        /// A picture in a JSON body is neither base64 nor a base64 data URI.
        BadBase64,
        /// The body could not be read to its end.
        BadBody,
        /// The list of pictures is empty.
        NoPictures,
        /// The answer would be longer than answers may be.
        AnswerTooLarge,
        /// A picture was given as a URL, and this server fetches none.
        UrlFetchingOff,
        /// A URL that this server does not ask.
        UrlNotAllowed,
        /// A value that the API knows, and this version of the server does not offer.
        NotOffered,
    }
    UNAUTHORIZED {
        /// The request has no API key, and this server asks for one.
        KeyMissing,
        /// The request's API key is not one of this server's.
        KeyUnknown,
    }
    FORBIDDEN {
        /// The request's API key may read, and this would write.
        KeyReadOnly,
        /// A web page of another origin asked.
        OriginNotAllowed,
        /// The request names a host that is not this machine.
        HostNotAllowed,
    }
    NOT_FOUND {
        /// No such route.
        UnknownRoute,
        /// No such model.
        UnknownModel,
        /// No such head.
        UnknownHead,
        /// No such collection.
        UnknownCollection,
        /// No such item in the collection, or it has no picture.
        UnknownItem,
    }
    METHOD_NOT_ALLOWED {
        /// The route has other methods.
        MethodNotAllowed,
    }
    NOT_ACCEPTABLE {
        /// The answer cannot have the form that `Accept` asks for.
        NotAcceptable,
    }
    REQUEST_TIMEOUT {
        /// The body did not arrive in time.
        BodyTimeout,
    }
    CONFLICT {
        /// The collection was made by another model.
        ModelMismatch,
        /// A vector has another number of dimensions than the collection.
        DimensionMismatch,
        /// There is a collection of that name already.
        CollectionExists,
        /// A model is being loaded already.
        ReloadRunning,
    }
    PAYLOAD_TOO_LARGE {
        /// The body is over the limit.
        BodyTooLarge,
        /// The body holds more pictures than one request may.
        TooManyPictures,
        /// The picture declares more pixels than `--max-pixels`.
        TooManyPixels,
    }
    UNSUPPORTED_MEDIA_TYPE {
        /// The request's `Content-Type` or `Content-Encoding` is not one of ours.
        UnsupportedMediaType,
    }
    UNPROCESSABLE_ENTITY {
        /// A URL whose host gave no picture.
        UrlNotFetched,
        /// A picture without any bytes.
        EmptyPicture,
        /// Bytes that are no picture of a format that is offered.
        UnknownFormat,
        /// A picture that is damaged or cut short.
        CorruptPicture,
        /// The file is no snapshot of a collection, or a damaged or newer one.
        BadSnapshot,
        /// The model's graph does not have what was asked for.
        ModelLacksOutput,
        /// A model's folder holds nothing that can be served.
        ModelNotLoaded,
    }
    TOO_MANY_REQUESTS {
        /// The request's API key has used up what it may use in a minute.
        RateLimited,
        /// As many pictures as the server takes are being worked on.
        QueueFull,
    }
    INTERNAL_SERVER_ERROR {
        /// A fault of the server.
        Internal,
        /// The model failed on a picture that could be decoded.
        InferenceFailed,
        /// A stored item cannot be read.
        ItemDamaged,
    }
    SERVICE_UNAVAILABLE {
        /// The collections' files or database refuse to be read or written.
        StoreFailed,
        /// The collections' database does not answer.
        StoreUnreachable,
        /// The collections' database answers, and did not get to this in time.
        StoreBusy,
        /// The server cannot answer (yet, or any more).
        NotReady,
    }
    GATEWAY_TIMEOUT {
        /// The request was not answered before its deadline.
        DeadlinePassed,
    }
}

/// The answer to a request that failed.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Kind and status.
    pub code: Code,
    /// What is wrong with this request, and what to do about it.
    pub detail: Cow<'static, str>,
    /// Position of the picture that is at fault, from 0.
    pub index: Option<usize>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Whether the body also has the member `error` that OpenAI's clients read.
    pub(super) openai: bool,
}

impl Problem {
    /// An error of kind `code`; `detail` is read by people, and shortened where it would fill more than some lines: most details
    /// repeat what was sent.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: shortened(detail.into()), index: None, retry_after: None, openai: false }
    }

    /// Says which picture of the request is at fault.
    #[must_use]
    pub fn at(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// Says it a second time in the form that OpenAI's clients read.
    #[must_use]
    pub(super) fn with_openai_error(mut self) -> Self {
        self.openai = true;
        self
    }
}

/// At most [`MOST`] bytes and the mark of a gap, in one line. The end stays: it says what to do.
fn shortened(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() <= MOST && !text.contains(char::is_control) {
        return text;
    }
    let short = if text.len() > MOST {
        let (head, tail) = (text.floor_char_boundary(MOST - TAIL), text.ceil_char_boundary(text.len() - TAIL));
        format!("{} [… {} bytes left out …] {}", &text[..head], tail - head, &text[tail..])
    } else {
        text.into_owned()
    };
    Cow::Owned(short.replace(char::is_control, " "))
}

// `type` is left out, which means `about:blank`: the title is the status' own phrase, and `code` tells the kinds apart.
/// An error, as RFC 9457 (section 3.1) describes it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Body<'a> {
    /// The phrase of the status.
    title: &'static str,
    status: u16,
    code: Code,
    /// What is wrong with this request, and what to do about it.
    detail: &'a str,
    /// Position of the picture or item at fault, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// On `/v1/embeddings` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<OpenAiError<'a>>,
}

/// An error of OpenAI's API.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiError")]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: Code,
}

impl<'a> OpenAiError<'a> {
    fn of(code: Code, message: &'a str) -> Self {
        let r#type = match code.status() {
            status if status.is_server_error() => "server_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "authentication_error",
            _ => "invalid_request_error",
        };
        Self { message, r#type, param: None, code }
    }
}

/// Which statuses a route may answer with is told beside it.
impl OperationOutput for Problem {
    type Inner = Self;
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let (code, detail) = (self.code, &self.detail);
        match code {
            Code::Internal | Code::InferenceFailed | Code::StoreFailed | Code::ItemDamaged => {
                tracing::error!(?code, %detail, "request failed");
            }
            // `NotReady` is what every start answers for a while; a worker that is lost later has its own line in the log.
            Code::StoreUnreachable | Code::StoreBusy | Code::DeadlinePassed => tracing::warn!(?code, %detail, "request failed"),
            _ => tracing::debug!(?code, %detail, "request refused"),
        }
        let body = Body {
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code: self.code,
            detail: &self.detail,
            index: self.index,
            error: self.openai.then(|| OpenAiError::of(code, detail)),
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_keeps_its_ends_in_one_line() {
        let plain = "k: must lie between 1 and 10000, not 0";
        assert_eq!(Problem::new(Code::BadParameter, plain).detail, plain);
        let long = format!("unknown field `{}`, expected `k`", "é\n\u{1b}".repeat(1 << 20));
        let detail = Problem::new(Code::BadParameter, long).detail;
        assert!(detail.len() < MOST + 40 && !detail.contains(char::is_control), "{detail}");
        assert!(detail.starts_with("unknown field `é") && detail.ends_with("`, expected `k`"), "{detail}");
        let whole = "x".repeat(MOST);
        assert_eq!(Problem::new(Code::BadParameter, whole.clone()).detail, whole);
    }
}
