//! `POST /segment`: masks of what stands out in pictures.

use std::fmt;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ndarray::Axis;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use super::{
    App,
    infer::{infer, within},
    problem::{Code, Problem},
    submission::Submission,
};
use crate::{
    segment::{self, AttentionOptions, Head, Mask, Object, PngError, Rle, SegmentError},
    serving::{Seen, Served},
};

/// Most objects of one picture: an answer lists them all.
const MAX_OBJECTS: usize = 1000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Method {
    #[default]
    Attention,
    Background,
    Ncut,
    Lost,
    Pca,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Png,
    Rle,
    Polygons,
    Heatmap,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    model: Option<String>,
    method: Method,
    threshold: f32,
    #[serde(deserialize_with = "head")]
    #[schemars(with = "String")]
    head: Head,
    max_objects: usize,
    format: Format,
}

impl Default for Options {
    fn default() -> Self {
        let AttentionOptions { threshold, head, max_objects } = AttentionOptions::default();
        Self { model: None, method: Method::default(), threshold, head, max_objects, format: Format::default() }
    }
}

impl Options {
    /// Refuses what can be known to fail before a picture is decoded.
    fn check(&self, served: &Served) -> Result<(), Problem> {
        let refused = |code, why: String| Err(Problem::new(code, why));
        if self.method != Method::Attention {
            return refused(Code::NotOffered, "method: this server offers attention alone".into());
        }
        if !matches!(self.format, Format::Png | Format::Rle) {
            return refused(Code::NotOffered, "format: this server offers png and rle".into());
        }
        if !(self.threshold > 0.0 && self.threshold <= 1.0) {
            return Err(SegmentError::Threshold(self.threshold).into());
        }
        if !(1..=MAX_OBJECTS).contains(&self.max_objects) {
            let most = self.max_objects;
            return refused(Code::BadParameter, format!("max_objects: must lie between 1 and {MAX_OBJECTS}, not {most}"));
        }
        if !served.outputs().contains(&"attention") {
            let name = served.name();
            return refused(Code::ModelLacksOutput, format!("model `{name}` has no output `attention`"));
        }
        let heads = served.manifest().heads as usize;
        match self.head {
            Head::Number(head) if head >= heads => Err(SegmentError::NoSuchHead { head, heads }.into()),
            _ => Ok(()),
        }
    }

    fn attention(&self) -> AttentionOptions {
        AttentionOptions { threshold: self.threshold, head: self.head, max_objects: self.max_objects }
    }
}

/// A head's number may be written as a number or, as in a query, as text.
fn head<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Head, D::Error> {
    struct HeadVisitor;

    impl Visitor<'_> for HeadVisitor {
        type Value = Head;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("mean, best, all or the number of a head")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Head, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Head, E> {
            usize::try_from(number).map(Head::Number).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(HeadVisitor)
}

#[derive(Serialize)]
struct Answer {
    model: String,
    results: Vec<Segmented>,
}

#[derive(Serialize)]
struct Segmented {
    width: u32,
    height: u32,
    method: &'static str,
    masks: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    /// `[x, y, width, height]` in pixels of the picture.
    bbox: [u32; 4],
    /// Pixels of the mask.
    area: u64,
    /// How far the object stands out, 0 to 1.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rle: Option<Rle>,
    /// A PNG file in base64, white on black.
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
}

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, submission: Submission<Options>) -> Result<Response, Problem> {
    let Submission { pictures, options, room } = submission;
    let served = app.registry.get(options.model.as_deref())?.clone();
    options.check(&served)?;
    let as_picture = wants_png(&headers);
    if as_picture && pictures.len() != 1 {
        return Err(Problem::new(
            Code::NotAcceptable,
            "the mask itself (Accept: image/png) is the answer to one picture; ask for JSON, or send them one by one",
        ));
    }
    within(&app, async {
        let transform = served.manifest().transform.clone();
        let (side, patch) = (app.segment_size, served.manifest().patch_size);
        let prepare = move |picture: &_| transform.whole_picture(picture, side, patch).0;
        let inference = infer(&app, &served, pictures, prepare).await?;
        let (seen, timing) = (inference.seen, inference.timing.header());
        let response = app
            .pool
            .run(move || if as_picture { first_mask(&served, &seen[0], &options) } else { in_json(&served, &seen, &options) })
            .await??;
        drop(room);
        Ok((timing, response).into_response())
    })
    .await
}

/// Whether the client asks for a picture rather than JSON: what it names first decides.
fn wants_png(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = accepted.split([',', ';']).next().unwrap_or_default().trim();
    first.eq_ignore_ascii_case("image/png")
}

fn objects(served: &Served, seen: &Seen, options: &Options) -> Result<Vec<Object>, Problem> {
    let attention =
        seen.outputs.attention.as_ref().ok_or_else(|| Problem::new(Code::ModelLacksOutput, "the model has no output `attention`"))?;
    let attention = attention.index_axis(Axis(0), 0);
    Ok(segment::attention(attention, served.grid(seen), seen.size, &options.attention())?)
}

/// The mask of the first object as a PNG file; a picture without objects is black.
fn first_mask(served: &Served, seen: &Seen, options: &Options) -> Result<Response, Problem> {
    let grid = served.grid(seen);
    let mask = objects(served, seen, options)?
        .into_iter()
        .next()
        .map_or_else(|| Mask::new(vec![false; grid.len()], grid, seen.size), |object| object.mask);
    Ok(([(header::CONTENT_TYPE, "image/png")], mask.png()?).into_response())
}

fn in_json(served: &Served, seen: &[Seen], options: &Options) -> Result<Response, Problem> {
    let results = seen
        .iter()
        .map(|seen| {
            let masks = objects(served, seen, options)?.iter().map(|object| found(object, options.format)).collect::<Result<_, _>>()?;
            let (width, height) = seen.size;
            Ok(Segmented { width, height, method: "attention", masks })
        })
        .collect::<Result<_, Problem>>()?;
    let model = served.name().into();
    Ok(Json(Answer { model, results }).into_response())
}

fn found(object: &Object, format: Format) -> Result<Found, PngError> {
    let mask = &object.mask;
    Ok(Found {
        bbox: mask.bbox(),
        area: mask.area(),
        score: object.score,
        rle: (format == Format::Rle).then(|| mask.rle()),
        png: (format == Format::Png).then(|| mask.png()).transpose()?.map(|file| STANDARD.encode(file)),
    })
}

impl From<SegmentError> for Problem {
    fn from(error: SegmentError) -> Self {
        Self::new(Code::BadParameter, error.to_string())
    }
}

impl From<PngError> for Problem {
    fn from(error: PngError) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
}
