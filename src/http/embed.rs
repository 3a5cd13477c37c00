//! `POST /embed`: vectors of pictures.

use std::{borrow::Cow, sync::Arc};

use axum::{extract::State, http::HeaderName};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ndarray::{Array3, Axis};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq};
use serde_json::json;

use super::{
    App,
    answer::Encoder,
    embedded::{Embeddings, Tokens, embed},
    problem::{Code, Problem},
    response::{Either, FileBody, JsonBody, MediaTypes, Timed},
    submission::Submission,
};
use crate::{
    embedding_cache::Embedded,
    encoding::{Dtype, Encoded, Values, npy_header},
    serving::Served,
    traces::timed,
};
use dino_vision::{
    embedding::{self, EmbeddingError, Pooling},
    transform::PatchGrid,
};

/// How embeddings are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "EmbedEncoding")]
enum Encoding {
    /// Numbers.
    #[default]
    Json,
    /// JSON with one string per picture, the base64 of its little-endian bytes.
    Base64,
    /// The answer is an `.npy` file.
    Npy,
    /// The answer is the bytes alone, little-endian and row-major.
    Raw,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "EmbedOptions")]
pub(super) struct Options {
    /// The model; without it the first one that is served.
    model: Option<String>,
    pooling: Pooling,
    /// Number of the block, from 1, whose tokens become the vector, after the final norm; the last one if left out. Other ones have to be in
    /// the model's folder (`dino-train export --layers`).
    #[schemars(range(min = 1))]
    layer: Option<u32>,
    /// Whether vectors are brought to length 1, after they were cut.
    normalize: bool,
    dtype: Dtype,
    encoding: Encoding,
    /// Numbers that are kept of each vector, from its start.
    dimensions: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: None,
            pooling: Pooling::default(),
            layer: None,
            normalize: true,
            dtype: Dtype::default(),
            encoding: Encoding::default(),
            dimensions: None,
        }
    }
}

impl Options {
    /// The defaults, with vectors cut to so many numbers.
    pub(super) fn cut_to(dimensions: Option<usize>) -> Self {
        Self { dimensions, ..Self::default() }
    }

    /// Which tokens become the vectors. Refuses what can be known to fail before a picture is decoded.
    pub(super) fn check(&self, served: &Served) -> Result<Tokens, Problem> {
        let dim = self.pooling.dim(served.manifest().dim as usize);
        if let Some(dimensions) = self.dimensions
            && !(1..=dim).contains(&dimensions)
        {
            return Err(EmbeddingError::Dimensions { dimensions, dim }.into());
        }
        let binary_body = matches!(self.encoding, Encoding::Npy | Encoding::Raw);
        if binary_body && self.pooling == Pooling::Patches && self.dtype == Dtype::Int8 {
            return Err(Problem::new(
                Code::BadParameter,
                "encoding: patches as int8 have a scale each, which npy and raw cannot hold; ask for json or base64",
            ));
        }
        Ok(Tokens { pooling: self.pooling, layer: check_layer(served, self.layer)? })
    }
}

/// The block whose tokens are asked for; `None` for the last one.
pub(super) fn check_layer(served: &Served, layer: Option<u32>) -> Result<Option<u32>, Problem> {
    let depth = served.manifest().depth;
    match layer {
        Some(layer) if layer == 0 || (depth > 0 && layer > depth) => {
            let known = if depth > 0 { format!(" to {depth}, its last one") } else { " on".to_owned() };
            Err(Problem::new(Code::BadParameter, format!("layer: this model has blocks from 1{known}, and none of number {layer}")))
        }
        Some(layer) if layer == depth => Ok(None),
        Some(layer) if !served.layers().contains(&layer) => {
            Err(EmbeddingError::LacksLayer { layer, layers: served.layers().to_vec() }.into())
        }
        layer => Ok(layer),
    }
}

/// The blocks that `layer` may name.
pub(super) fn layers(served: &Served) -> Vec<u32> {
    let depth = Some(served.manifest().depth).filter(|depth| *depth > 0 && !served.layers().contains(depth));
    served.layers().iter().copied().chain(depth).collect()
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[Code::UnknownModel, Code::ModelLacksOutput];

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<Timed<Vectors>, Problem> {
    let Submission { pictures, options, lease } = submission;
    let served = app.registry.get(options.model.as_deref())?;
    let tokens = options.check(&served)?;
    let Embeddings { pictures, timing } = embed(&app, &served, pictures, tokens).await?;
    let encoder = Encoder::new(&app);
    let vectors = timed("encode", app.pool.run(move || answer(&served, &pictures, &options, &encoder))).await??;
    drop(lease);
    Ok(timing.with(vectors))
}

/// One picture's rows: `[1, D]`, or `[patches, D]`.
pub(super) fn rows(embedded: &Embedded, options: &Options) -> Result<Array3<f32>, Problem> {
    let mut rows = match options.dimensions {
        Some(dimensions) => embedding::cut(&embedded.rows, dimensions)?,
        None => embedded.rows.clone(),
    };
    if options.normalize {
        embedding::normalise(&mut rows);
    }
    if rows.iter().all(|value| value.is_finite()) {
        Ok(rows)
    } else {
        Err(Problem::new(Code::InferenceFailed, "the model gave numbers that are not finite"))
    }
}

/// The vectors, as JSON or as one array.
pub(super) type Vectors = Either<JsonBody<Answer<'static>>, FileBody<ArrayFile>>;

/// An array of numbers.
pub(super) struct ArrayFile;

const NPY: &str = "application/x-npy";
const RAW: &str = "application/octet-stream";

impl MediaTypes for ArrayFile {
    const NAMES: &'static [&'static str] = &[NPY, RAW];
}

fn answer(served: &Served, embedded: &[Arc<Embedded>], options: &Options, encoder: &Encoder) -> Result<Vectors, Problem> {
    let pictures: Vec<_> = embedded.iter().map(|embedded| rows(embedded, options)).collect::<Result<_, _>>()?;
    match options.encoding {
        Encoding::Json | Encoding::Base64 => as_json(served, embedded, options, &pictures, encoder).map(Either::First),
        Encoding::Npy | Encoding::Raw => as_bytes(served, options, &pictures, encoder).map(Either::Second),
    }
}

/// The embeddings of the pictures, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EmbedResponse")]
pub(super) struct Answer<'a> {
    model: &'a str,
    /// Length of each vector.
    dim: usize,
    dtype: Dtype,
    pooling: Pooling,
    embeddings: Vec<Vector>,
    /// `[rows, columns]` of patches of each picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    grid: Option<Vec<[usize; 2]>>,
    /// `x ≈ scale · value` for int8: one for each vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    scales: Option<Vec<Scales>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum Scales {
    One(f32),
    PerPatch(Vec<f32>),
}

fn as_json(
    served: &Served,
    embedded: &[Arc<Embedded>],
    options: &Options,
    pictures: &[Array3<f32>],
    encoder: &Encoder,
) -> Result<JsonBody<Answer<'static>>, Problem> {
    let patches = options.pooling == Pooling::Patches;
    let mut embeddings = Vec::with_capacity(pictures.len());
    let mut scales = Vec::new();
    for rows in pictures {
        let mut encoded = Encoded::new(rows.view(), options.dtype);
        if options.dtype == Dtype::Int8 {
            let of_rows = std::mem::take(&mut encoded.scales);
            scales.push(if patches { Scales::PerPatch(of_rows) } else { Scales::One(of_rows[0]) });
        }
        embeddings.push(match options.encoding {
            Encoding::Base64 => Vector::Base64(STANDARD.encode(encoded.to_le_bytes())),
            _ if patches => Vector::Rows(encoded),
            _ => Vector::Row(encoded),
        });
    }
    let body = encoder.json(&Answer {
        model: served.name(),
        dim: pictures[0].len_of(Axis(2)),
        dtype: options.dtype,
        pooling: options.pooling,
        embeddings,
        grid: patches.then(|| embedded.iter().map(|embedded| shape_of(embedded.grid)).collect()),
        scales: (options.dtype == Dtype::Int8).then_some(scales),
    })?;
    Ok(body)
}

fn shape_of(grid: PatchGrid) -> [usize; 2] {
    [grid.rows, grid.columns]
}

/// The embedding of one picture, as JSON has it.
enum Vector {
    Base64(String),
    Row(Encoded),
    Rows(Encoded),
}

impl JsonSchema for Vector {
    fn schema_name() -> Cow<'static, str> {
        "Embedding".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let numbers = json!({ "type": "array", "items": { "type": "number" } });
        json_schema!({
            "description": "Numbers; with `pooling=patches` a list of them for each patch; with `encoding=base64` a string",
            "anyOf": [numbers, { "type": "array", "items": numbers }, { "type": "string" }],
        })
    }
}

impl Serialize for Vector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Base64(text) => serializer.serialize_str(text),
            Self::Row(Encoded { values, .. }) => Row(values, 0, usize::MAX).serialize(serializer),
            Self::Rows(Encoded { values, shape, .. }) => {
                let [_, rows, stored] = *shape;
                let mut list = serializer.serialize_seq(Some(rows))?;
                for row in 0..rows {
                    list.serialize_element(&Row(values, row * stored, stored))?;
                }
                list.end()
            }
        }
    }
}

/// The numbers from a position on, so many.
struct Row<'a>(&'a Values, usize, usize);

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(values, from, many) = *self;
        match values {
            Values::F32(values) => serializer.collect_seq(values.iter().skip(from).take(many)),
            Values::F16(values) => serializer.collect_seq(values.iter().skip(from).take(many).map(|value| value.to_f32())),
            Values::Int8(values) => serializer.collect_seq(values.iter().skip(from).take(many)),
            Values::Binary(values) => serializer.collect_seq(values.iter().skip(from).take(many)),
        }
    }
}

const SHAPE: HeaderName = HeaderName::from_static("x-dino-shape");
const DTYPE: HeaderName = HeaderName::from_static("x-dino-dtype");
const SCALES: HeaderName = HeaderName::from_static("x-dino-scales");

/// All embeddings in one array `[n, D]`, or `[n, patches, D]`.
fn as_bytes(served: &Served, options: &Options, pictures: &[Array3<f32>], encoder: &Encoder) -> Result<FileBody<ArrayFile>, Problem> {
    let (_, rows, dim) = pictures[0].dim();
    if pictures.iter().any(|picture| picture.dim() != pictures[0].dim()) {
        return Err(Problem::new(
            Code::BadParameter,
            "encoding: these pictures have different numbers of patches, which one array cannot hold; ask for json",
        ));
    }
    let stored = options.dtype.stored(dim);
    let shape = match options.pooling {
        Pooling::Patches => vec![pictures.len(), rows, stored],
        _ => vec![pictures.len(), stored],
    };
    let (kind, head) = match options.encoding {
        Encoding::Npy => (NPY, npy_header(options.dtype.npy_descr(), &shape)),
        _ => (RAW, Vec::new()),
    };
    let mut scales = Vec::new();
    let body = encoder.bytes(head.len() + pictures.len() * rows * options.dtype.bytes(dim), |bytes| {
        bytes.extend(head);
        for picture in pictures {
            let encoded = Encoded::new(picture.view(), options.dtype);
            encoded.append_le_bytes(bytes);
            scales.extend(encoded.scales);
        }
    })?;
    let headers =
        [(SHAPE, listed(&shape)), (DTYPE, options.dtype.to_string()), (HeaderName::from_static("x-dino-model"), served.name().to_owned())];
    let scales = (!scales.is_empty()).then(|| [(SCALES, listed(&scales))]);
    Ok(FileBody::new(kind, (headers, scales, body)))
}

fn listed<T: ToString>(values: &[T]) -> String {
    let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
    texts.join(",")
}

impl From<EmbeddingError> for Problem {
    fn from(error: EmbeddingError) -> Self {
        let code = match error {
            EmbeddingError::LacksOutput { .. } | EmbeddingError::LacksLayer { .. } => Code::ModelLacksOutput,
            EmbeddingError::Unknown(_) | EmbeddingError::Dimensions { .. } => Code::BadParameter,
        };
        Self::new(code, error.to_string())
    }
}
