//! Pictures and options of a request, in the three forms that they may come in.
//!
//! | `Content-Type` | pictures | options |
//! | --- | --- | --- |
//! | `image/*`, `application/octet-stream` | the body is one | query parameters |
//! | `multipart/form-data` | each part named `image` | query parameters |
//! | `application/json` | `{"images": ["<base64>", "data:image/…;base64,…", "https://…"]}` | the other members, else query parameters |
//!
//! Upserts and searches have JSON of their own, which may hold vectors in place of pictures.

use std::{borrow::Cow, marker::PhantomData};

use axum::{
    body::Body,
    extract::{FromRequest, Multipart, Request},
    http::{HeaderMap, header, request::Parts},
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use mime::Mime;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    App,
    body::{MemoryPermit, check_encoding, read},
    json,
    openapi::body::WithImages,
    parameters::from_query,
    problem::{Code, Problem},
    remote::{self, ImageSource},
};
use dino_vision::batch::Ticket;

/// Base64 with or without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// What a client sent to a route whose options are `O`.
#[derive(Debug)]
pub struct Submission<O> {
    /// The pictures' bytes, at least one, not decoded yet.
    pub pictures: Vec<Bytes>,
    /// The route's options.
    pub options: O,
    /// Held until the request is answered.
    pub lease: Lease,
}

/// A request's places in the queue, one for each picture, and the memory of its body. Both are free again when it is dropped.
#[derive(Debug)]
pub struct Lease {
    _places: Ticket,
    memory: MemoryPermit,
}

/// How a body carries its pictures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyFormat {
    Raw,
    Multipart,
    Json,
}

/// A body that was read within the limits, its pictures not counted in yet: pictures with options `O` in the query, or JSON that holds
/// a `J`.
#[derive(Debug)]
pub(super) struct Upload<O, J> {
    pub(super) content: Content<O>,
    pub(super) memory: MemoryPermit,
    json: PhantomData<fn() -> J>,
}

/// The same for routes that take JSON alone, and no options in the query; `J` is what it holds.
#[derive(Debug)]
pub(super) struct JsonUpload<J> {
    /// JSON, not parsed yet.
    pub(super) body: Bytes,
    pub(super) memory: MemoryPermit,
    json: PhantomData<fn() -> J>,
}

/// What a body holds.
#[derive(Debug)]
pub(super) enum Content<O> {
    /// Pictures alone; the options were in the query.
    Pictures(Vec<Bytes>, O),
    /// JSON, not parsed yet.
    Json(JsonRequest),
}

/// JSON with the options of the query, which count where the body does not name them.
#[derive(Debug)]
pub(super) struct JsonRequest {
    pub(super) body: Bytes,
    pub(super) query: Vec<(String, String)>,
}

/// No options at all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

impl Lease {
    /// Takes a place for each of so many pictures.
    pub(super) fn take(app: &App, pictures: usize, memory: MemoryPermit) -> Result<Self, Problem> {
        Ok(Self { _places: app.admission.admit(pictures)?, memory })
    }

    /// More memory that goes with it.
    pub(super) fn add(&mut self, memory: MemoryPermit) {
        self.memory.merge(memory);
    }
}

impl<O: DeserializeOwned + Send, J> FromRequest<App> for Upload<O, J> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        Self::read(request, app, false).await
    }
}

impl<O: DeserializeOwned + Send, J> Upload<O, J> {
    /// Reads a request, whose JSON holds pictures in any case where it `needs_pictures`.
    async fn read(request: Request, app: &App, needs_pictures: bool) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let form = form(&parts.headers)?;
        let options = from_query(&parts.uri)?;
        if needs_pictures || form != BodyFormat::Json {
            check_queue(app)?;
        }
        let (body, memory) = read(&parts, body, app.limits.body, &app.bodies).await?;
        let content = match form {
            BodyFormat::Raw => Content::Pictures(vec![body], options),
            BodyFormat::Json => Content::Json(JsonRequest { body, query: from_query(&parts.uri)? }),
            BodyFormat::Multipart => {
                let most = app.limits.pictures;
                // All of it is here: this never waits, but for the processor.
                let split = move || futures::executor::block_on(from_multipart(parts, body, most));
                Content::Pictures(app.pool.run(split).await??, options)
            }
        };
        Ok(Self { content, memory, json: PhantomData })
    }
}

impl<J> FromRequest<App> for JsonUpload<J> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_encoding(&parts.headers)?;
        let is_announced = json::is_announced(&parts.headers).map_err(|mut problem| {
            problem.detail = format!("{}; /embed takes pictures as they are", problem.detail).into();
            problem
        })?;
        if !is_announced {
            return Err(json::unannounced());
        }
        let NoOptions {} = from_query(&parts.uri)?;
        check_queue(app)?;
        let (body, memory) = read(&parts, body, app.limits.body, &app.bodies).await?;
        Ok(Self { body, memory, json: PhantomData })
    }
}

impl<O: DeserializeOwned + Send + 'static> FromRequest<App> for Submission<O> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let Upload { content, memory, .. } = Upload::<O, WithImages<O>>::read(request, app, true).await?;
        let most = app.limits.pictures;
        let (mut pictures, options) = match content {
            Content::Pictures(pictures, options) => (pictures.into_iter().map(ImageSource::from).collect(), options),
            // Base64 of many megabytes takes long to decode, which other requests must not wait for.
            Content::Json(request) => app.pool.run(move || from_json(&request, most)).await??,
        };
        let mut lease = Lease::take(app, at_least_one(&pictures)?, memory)?;
        remote::fetch(app, pictures.iter_mut().enumerate(), &mut lease).await?;
        Ok(Self { pictures: pictures.into_iter().map(|source| source.bytes).collect(), options, lease })
    }
}

/// Refuses a request without pictures, and counts the others.
pub(super) fn at_least_one<T>(pictures: &[T]) -> Result<usize, Problem> {
    match pictures.len() {
        0 => Err(Problem::new(Code::NoPictures, "the request holds no picture")),
        count => Ok(count),
    }
}

/// Refuses a picture that the queue has no place for, before the body is read. It takes no place: a client that sends slowly should not
/// hold one.
fn check_queue(app: &App) -> Result<(), Problem> {
    drop(app.admission.admit(1)?);
    Ok(())
}

/// Which form the headers announce.
fn form(headers: &HeaderMap) -> Result<BodyFormat, Problem> {
    let refused = |what: String| {
        Problem::new(
            Code::UnsupportedMediaType,
            format!(
                "{what}; send image/*, application/octet-stream, multipart/form-data or application/json \
                 (with curl: -H 'Content-Type: image/jpeg')"
            ),
        )
    };
    check_encoding(headers)?;
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(refused("the request has no Content-Type".into()));
    };
    let kind: Option<Mime> = value.to_str().ok().and_then(|text| text.parse().ok());
    match kind.as_ref().map(|kind| (kind.type_(), kind.subtype())) {
        Some((mime::IMAGE, _) | (mime::APPLICATION, mime::OCTET_STREAM)) => Ok(BodyFormat::Raw),
        Some((mime::MULTIPART, mime::FORM_DATA)) => Ok(BodyFormat::Multipart),
        Some((mime::APPLICATION, mime::JSON)) => Ok(BodyFormat::Json),
        _ => Err(refused(format!("Content-Type {value:?} is not one of ours"))),
    }
}

async fn from_multipart(parts: Parts, body: Bytes, most: usize) -> Result<Vec<Bytes>, Problem> {
    let refused = |why: String| Problem::new(Code::BadMultipart, why);
    let request = Request::from_parts(parts, Body::from(body));
    let mut form = Multipart::from_request(request, &()).await.map_err(|rejection| refused(rejection.body_text()))?;
    let mut pictures = Vec::new();
    while let Some(mut part) = form.next_field().await.map_err(|error| refused(error.body_text()))? {
        if part.name() != Some("image") {
            let name = part.name().unwrap_or("without a name");
            return Err(refused(format!("part `{name}`: pictures are parts named `image`, options are query parameters")));
        }
        if pictures.len() == most {
            return Err(too_many(most));
        }
        let coding = part.headers().get("content-transfer-encoding").map(|coding| String::from_utf8_lossy(coding.as_bytes()));
        if let Some(coding) = coding
            && !["binary", "8bit", "7bit"].contains(&&*coding.trim().to_ascii_lowercase())
        {
            let coding: String = coding.chars().take(64).collect();
            return Err(refused(format!("Content-Transfer-Encoding {coding} is not read: send pictures as they are")).at(pictures.len()));
        }
        let mut picture = Bytes::new();
        // One piece, unless it breaks off: nothing is copied.
        while let Some(piece) = part.chunk().await.map_err(|error| refused(error.body_text()))? {
            picture = if picture.is_empty() { piece } else { [picture, piece].concat().into() };
        }
        pictures.push(picture);
    }
    Ok(pictures)
}

fn from_json<O: DeserializeOwned>(request: &JsonRequest, most: usize) -> Result<(Vec<ImageSource>, O), Problem> {
    let (options, [images]) = json::parse_beside(&request.body, &request.query, json::LONG, ["images"]).map_err(|mut problem| {
        if problem.code == Code::BadJson {
            problem.detail = format!("{}; expected {{\"images\": [\"<base64>\", …], …options}}", problem.detail).into();
        }
        problem
    })?;
    let images = images.ok_or_else(|| Problem::new(Code::NoPictures, "`images` is missing: a list of base64 strings"))?;
    let refused = || Problem::new(Code::BadJson, "images: expected a list of strings: base64, data URIs or addresses");
    Ok((pictures_from_list(images, most, refused)?, options))
}

/// The pictures of a list; `refused` is the answer where it is no list of strings.
pub(super) fn pictures_from_list(list: &RawValue, most: usize, refused: impl Fn() -> Problem) -> Result<Vec<ImageSource>, Problem> {
    if !list.get().starts_with('[') {
        return Err(refused());
    }
    let mut pictures = Vec::new();
    json::each(list, |index, element| {
        if index == most {
            return Err(too_many(most));
        }
        let text = json::text(element).ok_or_else(|| refused().at(index))?;
        pictures.push(picture_from_text(text).map_err(|problem| problem.at(index))?);
        Ok(())
    })?;
    Ok(pictures)
}

/// Longest address of a picture, in bytes.
const MAX_URL: usize = 8192;
/// What comes before the data in a data URI, in small letters.
const BASE64_FOLLOWS: &str = ";base64";

/// Base64, a data URI that holds base64, or an address.
pub(super) fn picture_from_text(text: Cow<'_, str>) -> Result<ImageSource, Problem> {
    let refused = |why: String| Problem::new(Code::BadBase64, why);
    let trimmed = text.trim();
    let starts_with = |prefix: &str| trimmed.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    if starts_with("http://") || starts_with("https://") {
        if trimmed.len() > MAX_URL {
            return Err(Problem::new(Code::UrlNotAllowed, format!("the address of a picture has at most {MAX_URL} bytes")));
        }
        return Ok(ImageSource::at(trimmed));
    }
    let encoded = if starts_with("data:") {
        let found = trimmed.split_once(',').filter(|(head, _)| {
            let end = head.len().checked_sub(BASE64_FOLLOWS.len()).and_then(|at| head.get(at..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(BASE64_FOLLOWS))
        });
        let (_, data) = found.ok_or_else(|| refused("a data URI must have the form data:image/…;base64,…".into()))?;
        data
    } else {
        trimmed
    };
    let decoded = if encoded.bytes().any(|byte| byte.is_ascii_whitespace()) {
        // Encoders made for mail break lines. In place, since the string may be most of the request's memory.
        let skipped = text.len() - text.trim_start().len() + trimmed.len() - encoded.len();
        let mut bytes = text.into_owned().into_bytes();
        bytes.drain(..skipped);
        bytes.retain(|byte| !byte.is_ascii_whitespace());
        BASE64.decode(bytes)
    } else {
        BASE64.decode(encoded)
    };
    decoded.map(|bytes| Bytes::from(bytes).into()).map_err(|error| refused(format!("no base64: {error}")))
}

pub(super) fn too_many(most: usize) -> Problem {
    Problem::new(Code::TooManyPictures, format!("a request may hold {most} pictures (--max-pictures): send the others in further requests"))
}
