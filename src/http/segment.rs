//! `POST /segment`: masks of what stands out in pictures, of the classes of a linear head, or by the example of a collection.

mod basis;
mod in_context;
mod labelled;

use std::{borrow::Cow, fmt};

use axum::{
    extract::State,
    http::{HeaderMap, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::RgbImage;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

use self::basis::Basis;
use super::{
    App,
    answer::Encoder,
    infer::infer_indexed,
    problem::{Code, Problem},
    response::{Either, FileBody, JsonBody, MediaTypes, Timed},
    submission::Submission,
};
use crate::{
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::{
    cancel,
    segment::{
        self, Head, Heatmap, Mask, MaskDefaults, Method, Object, OutlinePart, Patches, PngError, Refine, Rle, SegmentError, Segmentation,
    },
    transform::PatchGrid,
};

/// Most objects of one picture: an answer lists them all.
const MAX_OBJECTS: usize = 1000;
/// Most objects of all pictures of a request together.
const MAX_DRAWN: usize = 4096;
/// Most pixels of all masks of a request that are drawn as PNG files, which have the size of their pictures: some seconds of a core.
const MAX_DRAWN_PIXELS: u64 = 2_000_000_000;

/// How masks are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MaskFormat")]
enum Format {
    /// A PNG file in base64, white on black.
    #[default]
    Png,
    /// COCO's compressed runs.
    Rle,
    /// COCO's outlines.
    Polygons,
    /// What the mask was cut out of, one number for each patch.
    Heatmap,
}

/// How outlines are written around holes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OutlineHoles")]
enum Holes {
    /// As COCO: one outline for each part, with a cut of no width to each of its holes.
    #[default]
    Joined,
    /// Each part with its holes apart, in rings that touch neither themselves nor each other but in single points.
    Separate,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "SegmentOptions")]
pub(super) struct Options {
    /// The model; without it the first one that is served.
    model: Option<String>,
    /// How objects are found. Without it as the model's folder says (`segment` in `manifest.json`), with the size, threshold and borders
    /// that go with it; where it says nothing, `attention`.
    #[serde(deserialize_with = "method")]
    #[schemars(schema_with = "method_names_or_null")]
    method: Option<Method>,
    /// Where the method cuts; each has a default of its own.
    threshold: Option<f32>,
    /// Heads whose attention counts: `mean`, `best`, `all`, or the number of one. Any other name is that of a linear segmentation
    /// head, which gives a mask for each of its classes.
    #[serde(deserialize_with = "head")]
    #[schemars(schema_with = "head_names")]
    head: Option<Asked>,
    /// Most masks of one picture, 1 to 1000. Without it 1, and with a linear head all, as far as the limits of a request allow.
    max_objects: Option<usize>,
    format: Format,
    /// With `format=polygons`: how holes are written.
    holes: Holes,
    /// What is done to the borders of masks: `none` where a method is named.
    refine: Option<Refine>,
    /// With method `pca`, a collection of patches: colours and foreground are those of a basis that is fitted on its pictures, the same for
    /// all pictures. Without a model the collection's is used, at the collection's size and layer.
    basis: Option<String>,
    /// A collection of patches whose items have masks: each label gets the pixels that its nearest patches vote for. No method, head or
    /// basis goes with it; `threshold` is the least share of a label, and all labels are answered where `max_objects` is not said.
    collection: Option<String>,
    /// With a collection: nearest patches that vote for each, 1 to 1000; 20 without it.
    k: Option<usize>,
    /// With a collection: a neighbour's weight is exp(cosine / temperature); 0.07 without it.
    temperature: Option<f64>,
}

/// What `head` names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    /// Heads of the last block's attention.
    Attention(Head),
    /// A linear head.
    Linear(String),
}

/// How the masks of one request are made.
#[derive(Clone, Debug)]
struct Wanted {
    options: segment::Options,
    /// Longer side in pixels that the model sees.
    size: u32,
    refine: Refine,
    format: Format,
    holes: Holes,
    /// In place of the picture's own components.
    basis: Option<Basis>,
}

impl Options {
    /// The number of masks that each of these pictures may have at most; without `max_objects` as many of `most` as all pictures of a
    /// request may have together.
    fn objects(&self, pictures: usize, most: usize) -> Result<usize, Problem> {
        let objects = self.max_objects.unwrap_or_else(|| most.min(MAX_DRAWN / pictures.max(1)).max(1));
        if !(1..=MAX_OBJECTS).contains(&objects) {
            return Err(Problem::new(Code::BadParameter, format!("max_objects: must lie between 1 and {MAX_OBJECTS}, not {objects}")));
        }
        let drawn = objects.saturating_mul(pictures);
        if drawn > MAX_DRAWN {
            let fits = (MAX_DRAWN / pictures).max(1);
            let detail = format!(
                "max_objects: {objects} for each of {pictures} pictures come to {drawn}, and a request may ask for {MAX_DRAWN}: \
                 ask for at most {fits}, or send fewer pictures at once"
            );
            return Err(Problem::new(Code::BadParameter, detail));
        }
        Ok(objects)
    }

    /// Refuses what can be known to fail before a picture is decoded. `most` is the largest size in pixels.
    fn check(&self, served: &Served, pictures: usize, most: u32) -> Result<Wanted, Problem> {
        self.objects(pictures, segment::Options::default().max_objects)?;
        let wanted = self.wanted(served.manifest().segment.as_ref(), most);
        self.check_holes()?;
        wanted.options.method.check(served.outputs()).map_err(|error| lacking(served, error))?;
        wanted.options.check(served.manifest().heads as usize)?;
        Ok(wanted)
    }

    fn check_holes(&self) -> Result<(), Problem> {
        if self.holes == Holes::Separate && self.format != Format::Polygons {
            return Err(Problem::new(Code::BadParameter, "holes: belongs to format polygons"));
        }
        Ok(())
    }

    /// What is asked for, and else the model's own settings. A head is one of `attention`, so that naming one asks for that method.
    fn wanted(&self, defaults: Option<&MaskDefaults>, most: u32) -> Wanted {
        let defaults = defaults.filter(|_| self.method.is_none() && self.head.is_none());
        let method = self.method.or(defaults.map(|defaults| defaults.method)).unwrap_or_default();
        let threshold = self.threshold.or(defaults.and_then(|defaults| defaults.threshold));
        let head = if let Some(Asked::Attention(head)) = self.head { head } else { Head::default() };
        let max_objects = self.max_objects.unwrap_or(segment::Options::default().max_objects);
        Wanted {
            options: segment::Options { method, threshold, head, max_objects },
            size: defaults.map_or(most, |defaults| defaults.size.min(most)),
            refine: self.refine.or(defaults.map(|defaults| defaults.refine)).unwrap_or_default(),
            format: self.format,
            holes: self.holes,
            basis: None,
        }
    }
}

/// How many of the masks that were found in one of `pictures` pictures are drawn: without `max_objects` as many as fit into what a request
/// may draw; with it all of them, or the request is refused before the first of this picture is drawn.
fn drawn(found: usize, format: Format, max_objects: Option<usize>, pictures: usize, (width, height): (u32, u32)) -> Result<usize, Problem> {
    if format != Format::Png {
        return Ok(found);
    }
    let pixels = (u64::from(width) * u64::from(height)).max(1);
    let fits = (MAX_DRAWN_PIXELS / pictures.max(1) as u64 / pixels).max(1) as usize;
    if found <= fits || max_objects.is_none() {
        return Ok(found.min(fits));
    }
    let detail = format!(
        "format: {found} masks of {width} x {height} pixels are too large to draw as PNG in a request of {pictures} pictures: set \
         max_objects to {fits}, ask for rle or polygons, or send fewer or smaller pictures"
    );
    Err(Problem::new(Code::TooManyPixels, detail))
}

fn lacking(served: &Served, error: SegmentError) -> Problem {
    let mut problem = Problem::from(error);
    problem.detail = format!("{}: `{}` has {}", problem.detail, served.name(), served.outputs().join(", ")).into();
    problem
}

fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Method>, D::Error> {
    let name = Option::<Cow<str>>::deserialize(deserializer)?;
    name.map(|name| name.parse().map_err(de::Error::custom)).transpose()
}

fn method_names_or_null(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "enum": Method::ALL.map(|method| Some(method.name())).into_iter().chain([None]).collect::<Vec<_>>() })
}

fn method_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": Method::ALL.map(Method::name).into_iter().chain([labelled::METHOD, in_context::METHOD]).collect::<Vec<_>>() })
}

fn head_names(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "integer"], "default": "mean" })
}

/// A head's number may be written as a number or, as in a query, as a string.
fn head<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Asked>, D::Error> {
    struct HeadVisitor;

    impl Visitor<'_> for HeadVisitor {
        type Value = Option<Asked>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("mean, best, all, the number of a head, or the name of a linear one")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<Asked>, E> {
            Ok(Some(text.parse().map_or_else(|_| Asked::Linear(text.to_owned()), Asked::Attention)))
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<Asked>, E> {
            usize::try_from(number).map(|number| Some(Asked::Attention(Head::Number(number)))).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(HeadVisitor)
}

/// The masks of the pictures, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SegmentResponse")]
pub(super) struct Answer {
    model: String,
    /// The linear head, where one was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    results: Vec<Segmented>,
}

/// What was found in one picture.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Segmentation")]
struct Segmented {
    /// Of the picture, upright.
    width: u32,
    height: u32,
    #[schemars(schema_with = "method_names")]
    method: &'static str,
    /// Best first.
    masks: Vec<Found>,
    /// For head `all`: what each head attends to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    heads: Vec<Heatmap>,
    /// For method `pca`: the three components as the colours of a PNG file, in base64; in a basis the background is black.
    #[serde(skip_serializing_if = "Option::is_none")]
    colours: Option<String>,
}

/// The mask of one object, in the format that was asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Mask")]
struct Found {
    /// The class, of a linear head or a collection.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// `[x, y, width, height]` in pixels of the picture.
    bbox: [u32; 4],
    /// Pixels of the mask.
    area: u64,
    /// How far the object stands out, 0 to 1; of a linear head the mean probability of the class over its mask, of a
    /// collection the mean share of the votes.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rle: Option<Rle>,
    /// Outlines as COCO writes them, one for each part: `[x1, y1, x2, y2, …]`. With `holes=separate` each part is an object, `outer` and
    /// `holes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    polygons: Option<Outlines>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<Heatmap>,
    /// A PNG file in base64, white on black.
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
}

/// Outlines in one of the two forms.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Outlines")]
enum Outlines {
    Joined(Vec<Vec<u32>>),
    Separate(Vec<OutlinePart>),
}

impl Outlines {
    fn of(mask: &Mask, holes: Holes) -> Self {
        match holes {
            Holes::Joined => Self::Joined(mask.polygons()),
            Holes::Separate => Self::Separate(mask.parts()),
        }
    }
}

/// What was inferred from a picture, and what its own pixels say.
struct Picture {
    inferred: Inferred,
    /// How much structure it has, see [`segment::structure()`].
    structure: f32,
    /// For refined borders.
    guide: Option<RgbImage>,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[
    Code::UnknownModel,
    Code::UnknownHead,
    Code::NotAcceptable,
    Code::ModelLacksOutput,
    Code::UnknownCollection,
    Code::ModelMismatch,
    Code::DimensionMismatch,
    Code::ItemDamaged,
    Code::StoreFailed,
];

/// Masks in JSON, or that of one picture as a file.
pub(super) type Masks = Either<JsonBody<Answer>, FileBody<MaskFile>>;

/// A mask as a picture.
pub(super) struct MaskFile;

const PNG: &str = "image/png";

impl MediaTypes for MaskFile {
    const NAMES: &'static [&'static str] = &[PNG];
}

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap, submission: Submission<Options>) -> Result<Timed<Masks>, Problem> {
    if let Some(collection) = &submission.options.collection {
        let collection = collection.clone();
        return in_context::handle(&app, &headers, submission, collection).await;
    }
    if submission.options.k.is_some() || submission.options.temperature.is_some() {
        return Err(Problem::new(Code::BadParameter, "k and temperature: belong to the vote of a `collection`, which is not named"));
    }
    if let Some(Asked::Linear(head)) = &submission.options.head {
        let head = head.clone();
        return labelled::handle(&app, &headers, submission, head).await;
    }
    let Submission { pictures, mut options, lease } = submission;
    let (source, served) = match options.basis.take() {
        Some(name) => {
            let (source, served) = basis::Source::find(&app, &name, &mut options, pictures.len()).await?;
            (Some(source), served)
        }
        None => (None, app.registry.get(options.model.as_deref())?),
    };
    let most = source.as_ref().map_or(app.segment_size, basis::Source::size);
    let mut wanted = options.check(&served, pictures.len(), most)?;
    let as_picture = wants_png(&headers, pictures.len())?;
    let (whole_picture, refine) = (served.whole_picture(wanted.size), wanted.refine);
    let prepare = move |picture: &RgbImage| {
        let (input, grid) = whole_picture(picture);
        let structure = segment::structure(input.view(), grid);
        let guide = refine.guide(picture);
        (input, (structure, guide))
    };
    let indexed = pictures.into_iter().enumerate().collect();
    let (inference, beside) = infer_indexed(&app, &served, indexed, prepare).await?;
    let timing = inference.timing;
    let inferred: Vec<Picture> =
        inference.inferred.into_iter().zip(beside).map(|(inferred, (structure, guide))| Picture { inferred, structure, guide }).collect();
    if let Some(source) = source {
        wanted.basis = Some(source.fitted(&app).await?);
    }
    let encoder = Encoder::new(&app);
    let draw = move || -> Result<Masks, Problem> {
        if as_picture {
            as_png(&served, &inferred[0], &wanted).map(Either::Second)
        } else {
            in_json(&served, &inferred, &wanted, &encoder).map(Either::First)
        }
    };
    let masks = timed("segment", app.drawing.run(draw)).await??;
    drop(lease);
    Ok(timing.with(masks))
}

/// Whether the client asks for a picture rather than JSON: what it names first decides. It is the answer to one picture.
fn wants_png(headers: &HeaderMap, pictures: usize) -> Result<bool, Problem> {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = accepted.split([',', ';']).next().unwrap_or_default().trim();
    let wanted = first.eq_ignore_ascii_case(PNG);
    if wanted && pictures != 1 {
        return Err(Problem::new(
            Code::NotAcceptable,
            "the mask itself (Accept: image/png) is the answer to one picture; ask for JSON, or send them one by one",
        ));
    }
    Ok(wanted)
}

fn segmentation(served: &Served, picture: &Picture, wanted: &Wanted) -> Result<Segmentation, Problem> {
    let Picture { inferred, structure, guide } = picture;
    let mut found = if let Some(basis) = &wanted.basis {
        basis.segmentation(served, picture, wanted)?
    } else {
        let patches = Patches::of(&inferred.outputs, served.grid(inferred));
        segment::segment(&patches, inferred.size, *structure, &wanted.options)?
    };
    if let Some(guide) = guide {
        found.refine(guide);
    }
    Ok(found)
}

/// The answer as a PNG file: the mask of the first object, white on black, black where there is none. So with every method: the
/// colours of `pca` are in the JSON.
fn as_png(served: &Served, picture: &Picture, wanted: &Wanted) -> Result<FileBody<MaskFile>, Problem> {
    let Segmentation { objects, grid, .. } = segmentation(served, picture, wanted)?;
    let nothing = || Mask::new(vec![false; grid.len()], grid, picture.inferred.size);
    let file = objects.into_iter().next().map_or_else(nothing, |object| object.mask).png()?;
    Ok(FileBody::new(PNG, file))
}

fn in_json(served: &Served, pictures: &[Picture], wanted: &Wanted, encoder: &Encoder) -> Result<JsonBody<Answer>, Problem> {
    let results = pictures.iter().map(|picture| result(served, picture, pictures.len(), wanted)).collect::<Result<_, _>>()?;
    let model = served.name().into();
    encoder.json(&Answer { model, head: None, results })
}

/// What was found in one of `pictures` pictures.
fn result(served: &Served, picture: &Picture, pictures: usize, wanted: &Wanted) -> Result<Segmented, Problem> {
    let Segmentation { objects, heads, components, grid } = segmentation(served, picture, wanted)?;
    let (width, height) = picture.inferred.size;
    drawn(objects.len(), wanted.format, Some(wanted.options.max_objects), pictures, picture.inferred.size)?;
    let draw = || match &wanted.basis {
        // Not from the least to the largest of this picture: colours are the same in all.
        Some(_) => segment::colours_png(&segment::bytes_of_shares(&components), grid, (width, height)),
        None => segment::map_png(&components, grid, (width, height)),
    };
    let colours = (wanted.options.method == Method::Pca).then(draw).transpose()?;
    Ok(Segmented {
        width,
        height,
        method: wanted.options.method.name(),
        masks: objects.iter().map(|object| found(object, wanted, grid)).collect::<Result<_, Problem>>()?,
        heads: heads.iter().map(|head| Heatmap::new(head, grid)).collect(),
        colours: colours.map(|file| STANDARD.encode(file)),
    })
}

fn found(object: &Object, wanted: &Wanted, grid: PatchGrid) -> Result<Found, Problem> {
    written(&object.mask, object.score, (wanted.format, wanted.holes), || Heatmap::new(&object.heat, grid))
}

fn written(mask: &Mask, score: f32, (format, holes): (Format, Holes), heatmap: impl FnOnce() -> Heatmap) -> Result<Found, Problem> {
    cancel::check()?;
    Ok(Found {
        label: None,
        bbox: mask.bbox(),
        area: mask.area(),
        score,
        rle: (format == Format::Rle).then(|| mask.rle()),
        polygons: (format == Format::Polygons).then(|| Outlines::of(mask, holes)),
        heatmap: (format == Format::Heatmap).then(heatmap),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_max_objects_many_pictures_share_what_a_request_may_have() {
        let objects = |max_objects, pictures, most| Options { max_objects, ..Options::default() }.objects(pictures, most);
        assert_eq!(objects(None, 1, 150).unwrap(), 150);
        assert_eq!(objects(None, 28, 150).unwrap(), MAX_DRAWN / 28);
        assert!(objects(Some(150), 28, 150).unwrap_err().detail.contains("at most 146"));
    }

    #[test]
    fn masks_of_large_pictures_are_drawn_as_far_as_a_request_may() {
        let drawn = |max_objects, format, found, pictures, size| drawn(found, format, max_objects, pictures, size);
        let large = (10_000, 5000);
        assert_eq!(drawn(None, Format::Png, 150, 1, large).unwrap(), 40);
        assert_eq!(drawn(None, Format::Rle, 150, 1, large).unwrap(), 150);
        assert_eq!(drawn(Some(150), Format::Png, 40, 1, large).unwrap(), 40);
        let refused = drawn(Some(150), Format::Png, 150, 2, large).unwrap_err();
        assert!(refused.code == Code::TooManyPixels && refused.detail.contains("set max_objects to 20,"), "{}", refused.detail);
        // One mask of each picture is always drawn.
        assert_eq!(drawn(None, Format::Png, 9, 64, large).unwrap(), 1);
        assert_eq!(drawn(Some(1), Format::Png, 1, 64, large).unwrap(), 1);
    }
}
