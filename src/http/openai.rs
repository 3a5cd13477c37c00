//! `POST /v1/embeddings`: the request and the answer of OpenAI's API, so that its clients work unchanged.
//!
//! Where OpenAI takes text, a picture is given: a data URI, or plain base64. Vectors are the CLS token's, of length 1, as
//! `/embed` gives them by default.

use std::sync::Arc;

use axum::extract::State;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::{
    App,
    answer::Encoder,
    embed::{self, rows},
    embedded::{self, Embeddings},
    json,
    problem::{Code, Problem},
    remote::{self, ImageSource},
    response::{JsonBody, Timed},
    submission::{JsonUpload, Lease, at_least_one, picture_from_text, pictures_from_list},
};
use crate::{embedding_cache::Embedded, serving::Served, traces::timed};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "OpenAiEmbeddingsRequest")]
pub(super) struct Request<'a> {
    /// One picture, or a list of them.
    #[serde(borrow)]
    #[schemars(schema_with = "one_or_many")]
    input: &'a RawValue,
    /// The model; without it the first one that is served.
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    encoding_format: Format,
    /// Numbers that are kept of each vector, from its start.
    #[serde(default)]
    dimensions: Option<usize>,
    /// Taken, and not looked at.
    #[serde(default, rename = "user")]
    #[schemars(with = "Option<String>")]
    _user: Option<IgnoredAny>,
}

fn one_or_many(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
}

/// What is asked of the pictures.
struct EmbeddingOptions {
    model: Option<String>,
    format: Format,
    dimensions: Option<usize>,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OpenAiEncodingFormat")]
enum Format {
    /// Numbers.
    #[default]
    Float,
    /// Little-endian f32.
    Base64,
}

/// A list of embeddings.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiEmbeddingsResponse")]
pub(super) struct Answer {
    object: &'static str,
    data: Vec<Entry>,
    model: String,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiEmbedding")]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Tokens of a picture are its patches, its registers and the CLS token.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OpenAiUsage")]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// The body, or why it cannot be read.
type Body = Result<JsonUpload<Request<'static>>, Problem>;

/// Errors beside those of the body.
pub(super) const ERRORS: &[Code] = &[Code::UnknownModel, Code::ModelLacksOutput];

pub(super) async fn handle(State(app): State<App>, body: Body) -> Result<Timed<JsonBody<Answer>>, Problem> {
    answer(&app, body).await.map_err(Problem::with_openai_error)
}

async fn answer(app: &App, body: Body) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let JsonUpload { body, memory, .. } = body?;
    let most = app.limits.pictures;
    let (mut pictures, options_of_request) = app.pool.run(move || parse(&body, most)).await??;
    let mut lease = Lease::take(app, at_least_one(&pictures)?, memory)?;
    let served = app.registry.get(options_of_request.model.as_deref())?;
    let options = embed::Options::cut_to(options_of_request.dimensions);
    let tokens = options.check(&served)?;
    remote::fetch(app, pictures.iter_mut().enumerate(), &mut lease).await?;
    let pictures = pictures.into_iter().map(|source| source.bytes).collect();
    let Embeddings { pictures, timing } = embedded::embed(app, &served, pictures, tokens).await?;
    let encoder = Encoder::new(app);
    let listing = move || encoder.json(&list(&served, &pictures, &options, options_of_request.format)?);
    let answer = timed("encode", app.pool.run(listing)).await??;
    drop(lease);
    Ok(timing.with(answer))
}

fn parse(body: &[u8], most: usize) -> Result<(Vec<ImageSource>, EmbeddingOptions), Problem> {
    let Request { input, model, encoding_format: format, dimensions, .. } = json::parse(body, &["input"])?;
    let pictures = if let Some(text) = json::text(input) {
        vec![picture_from_text(text).map_err(|problem| problem.at(0))?]
    } else {
        let refused =
            || Problem::new(Code::BadParameter, "input: expected a data URI, base64, or a list of them; text and tokens are not embedded");
        pictures_from_list(input, most, refused)?
    };
    Ok((pictures, EmbeddingOptions { model, format, dimensions }))
}

fn list(served: &Served, embedded: &[Arc<Embedded>], options: &embed::Options, format: Format) -> Result<Answer, Problem> {
    let entry = |(index, embedded): (usize, &Arc<Embedded>)| {
        let vector: Vec<f32> = rows(embedded, options)?.into_iter().collect();
        let embedding = match format {
            Format::Float => Vector::Float(vector),
            Format::Base64 => Vector::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())),
        };
        Ok(Entry { object: "embedding", index, embedding })
    };
    let data = embedded.iter().enumerate().map(entry).collect::<Result<_, Problem>>()?;
    let tokens = |embedded: &Arc<Embedded>| 1 + served.manifest().registers as usize + embedded.grid.len();
    let tokens = embedded.iter().map(tokens).sum();
    Ok(Answer { object: "list", data, model: served.name().into(), usage: Usage { prompt_tokens: tokens, total_tokens: tokens } })
}
