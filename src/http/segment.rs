//! `POST /segment`: masks of what stands out in pictures.

use std::{borrow::Cow, fmt};

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::RgbImage;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use super::{
    App,
    answer::Encoder,
    infer::infer_placed,
    problem::{Code, Problem},
    submission::Submission,
};
use crate::{
    serving::{Seen, Served},
    traces::timed,
};
use dino_vision::{
    cancel,
    segment::{self, Head, Heatmap, Mask, Method, Object, Patches, PngError, Rle, SegmentError, Segmentation},
    transform::PatchGrid,
};

/// Most objects of one picture: an answer lists them all.
const MAX_OBJECTS: usize = 1000;
/// Most objects of all pictures of a request together.
const MAX_DRAWN: usize = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Png,
    Rle,
    Polygons,
    Heatmap,
}

/// What is done to the borders of masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Refine {
    /// They lie along patches.
    #[default]
    None,
    /// They follow the picture's edges.
    Guided,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    model: Option<String>,
    #[serde(deserialize_with = "method")]
    #[schemars(with = "String")]
    method: Method,
    threshold: Option<f32>,
    #[serde(deserialize_with = "head")]
    #[schemars(with = "String")]
    head: Head,
    max_objects: usize,
    format: Format,
    refine: Refine,
}

impl Default for Options {
    fn default() -> Self {
        let segment::Options { method, threshold, head, max_objects } = segment::Options::default();
        Self { model: None, method, threshold, head, max_objects, format: Format::default(), refine: Refine::default() }
    }
}

impl Options {
    /// Refuses what can be known to fail before a picture is decoded.
    fn check(&self, served: &Served, pictures: usize) -> Result<(), Problem> {
        if !(1..=MAX_OBJECTS).contains(&self.max_objects) {
            let most = self.max_objects;
            return Err(Problem::new(Code::BadParameter, format!("max_objects: must lie between 1 and {MAX_OBJECTS}, not {most}")));
        }
        let drawn = self.max_objects.saturating_mul(pictures);
        if drawn > MAX_DRAWN {
            let fits = (MAX_DRAWN / pictures).max(1);
            let detail = format!(
                "max_objects: {} for each of {pictures} pictures come to {drawn}, and a request may ask for {MAX_DRAWN}: \
                 ask for at most {fits}, or send fewer pictures at once",
                self.max_objects
            );
            return Err(Problem::new(Code::BadParameter, detail));
        }
        self.method.check(served.outputs()).map_err(|error| lacking(served, error))?;
        Ok(self.wanted().check(served.manifest().heads as usize)?)
    }

    fn wanted(&self) -> segment::Options {
        segment::Options { method: self.method, threshold: self.threshold, head: self.head, max_objects: self.max_objects }
    }
}

fn lacking(served: &Served, error: SegmentError) -> Problem {
    let mut problem = Problem::from(error);
    problem.detail = format!("{}: `{}` has {}", problem.detail, served.name(), served.outputs().join(", ")).into();
    problem
}

fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Method, D::Error> {
    Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
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
    /// For head `all`: what each head attends to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    heads: Vec<Heatmap>,
    /// For method `pca`: the three components as the colours of a PNG file, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    colours: Option<String>,
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
    /// Outlines as COCO writes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    polygons: Option<Vec<Vec<u32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<Heatmap>,
    /// A PNG file in base64, white on black.
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
}

/// A picture that was seen, and what its own pixels say.
struct Picture {
    seen: Seen,
    /// How much there is to see in it, see [`segment::structure()`].
    structure: f32,
    /// For refined borders.
    guide: Option<RgbImage>,
}

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, submission: Submission<Options>) -> Result<Response, Problem> {
    let Submission { pictures, options, room } = submission;
    let served = app.registry.get(options.model.as_deref())?;
    options.check(&served, pictures.len())?;
    let as_picture = wants_png(&headers);
    if as_picture && pictures.len() != 1 {
        return Err(Problem::new(
            Code::NotAcceptable,
            "the mask itself (Accept: image/png) is the answer to one picture; ask for JSON, or send them one by one",
        ));
    }
    let whole_picture = served.whole_picture(app.segment_size);
    let refine = options.refine;
    let prepare = move |picture: &RgbImage| {
        let (input, grid) = whole_picture(picture);
        let structure = segment::structure(input.view(), grid);
        let guide = (refine == Refine::Guided).then(|| segment::guide(picture));
        (input, (structure, guide))
    };
    let placed = pictures.into_iter().enumerate().collect();
    let (inference, beside) = infer_placed(&app, &served, placed, prepare).await?;
    let timing = inference.timing.header();
    let seen: Vec<Picture> =
        inference.seen.into_iter().zip(beside).map(|(seen, (structure, guide))| Picture { seen, structure, guide }).collect();
    let encoder = Encoder::new(&app);
    let draw = move || if as_picture { as_png(&served, &seen[0], &options) } else { in_json(&served, &seen, &options, &encoder) };
    let response = timed("segment", app.drawing.run(draw)).await??;
    drop(room);
    Ok((timing, response).into_response())
}

/// Whether the client asks for a picture rather than JSON: what it names first decides.
fn wants_png(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = accepted.split([',', ';']).next().unwrap_or_default().trim();
    first.eq_ignore_ascii_case("image/png")
}

fn segmentation(served: &Served, Picture { seen, structure, guide }: &Picture, options: &Options) -> Result<Segmentation, Problem> {
    let patches = Patches::of(&seen.outputs, served.grid(seen));
    let mut found = segment::segment(&patches, seen.size, *structure, &options.wanted())?;
    if let Some(guide) = guide {
        found.refine(guide);
    }
    Ok(found)
}

/// The answer as a PNG file: the mask of the first object, white on black, black where there is none. So with every method: the
/// colours of `pca` are in the JSON.
fn as_png(served: &Served, picture: &Picture, options: &Options) -> Result<Response, Problem> {
    let Segmentation { objects, grid, .. } = segmentation(served, picture, options)?;
    let nothing = || Mask::new(vec![false; grid.len()], grid, picture.seen.size);
    let file = objects.into_iter().next().map_or_else(nothing, |object| object.mask).png()?;
    Ok(([(header::CONTENT_TYPE, "image/png")], file).into_response())
}

fn in_json(served: &Served, pictures: &[Picture], options: &Options, encoder: &Encoder) -> Result<Response, Problem> {
    let results = pictures.iter().map(|picture| result(served, picture, options)).collect::<Result<_, _>>()?;
    let model = served.name().into();
    encoder.json(&Answer { model, results })
}

fn result(served: &Served, picture: &Picture, options: &Options) -> Result<Segmented, Problem> {
    let Segmentation { objects, heads, components, grid } = segmentation(served, picture, options)?;
    let (width, height) = picture.seen.size;
    let colours = (options.method == Method::Pca).then(|| segment::map_png(&components, grid, (width, height))).transpose()?;
    Ok(Segmented {
        width,
        height,
        method: options.method.name(),
        masks: objects.iter().map(|object| found(object, options.format, grid)).collect::<Result<_, Problem>>()?,
        heads: heads.iter().map(|head| Heatmap::new(head, grid)).collect(),
        colours: colours.map(|file| STANDARD.encode(file)),
    })
}

fn found(object: &Object, format: Format, grid: PatchGrid) -> Result<Found, Problem> {
    cancel::check()?;
    let mask = &object.mask;
    Ok(Found {
        bbox: mask.bbox(),
        area: mask.area(),
        score: object.score,
        rle: (format == Format::Rle).then(|| mask.rle()),
        polygons: (format == Format::Polygons).then(|| mask.polygons()),
        heatmap: (format == Format::Heatmap).then(|| Heatmap::new(&object.heat, grid)),
        png: (format == Format::Png).then(|| mask.png()).transpose()?.map(|file| STANDARD.encode(file)),
    })
}

impl From<SegmentError> for Problem {
    fn from(error: SegmentError) -> Self {
        let code = if matches!(error, SegmentError::LacksOutput(_)) { Code::ModelLacksOutput } else { Code::BadParameter };
        Self::new(code, error.to_string())
    }
}

impl From<PngError> for Problem {
    fn from(error: PngError) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
}
