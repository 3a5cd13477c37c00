//! `POST /depth`: how far away what a picture shows is, by a linear head.

use std::sync::Arc;

use axum::extract::State;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    answer::Encoder,
    heads,
    problem::{Code, Problem},
    response::{JsonBody, Timed},
    submission::Submission,
};
use crate::{
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::{
    cancel,
    dense::depth::Depths,
    head::{DepthRange, LinearHead, Task},
    segment::Heatmap,
};

/// How depths are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "DepthFormat")]
enum Format {
    /// Numbers.
    #[default]
    Json,
    /// A grey PNG file of 16 bits in base64.
    Png,
    /// Their bytes in base64.
    Heatmap,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "DepthOptions", extend("example" = { "head": "rooms" }))]
pub(super) struct Options {
    /// The model; without it the one that has the head.
    model: Option<String>,
    /// A linear depth head.
    head: Option<String>,
    format: Format,
}

/// The depths of the pictures, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DepthResponse")]
pub(super) struct Answer {
    model: String,
    head: String,
    results: Vec<Map>,
}

/// The depths of one picture, in the format that was asked for, in the unit that the head was trained with (usually metres).
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DepthMap")]
struct Map {
    /// Of the picture, upright.
    width: u32,
    height: u32,
    /// The least depth in it.
    min: f32,
    /// The largest.
    max: f32,
    /// `[rows][columns]`, four times as fine as the patches; the grid covers the whole picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<Vec<Vec<f32>>>,
    /// A PNG file of the picture's shape in base64, at most 1024 pixels on its longer side; its numbers are depths times `scale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    png: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<Heatmap>,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[Code::UnknownModel, Code::UnknownHead, Code::ModelLacksOutput];

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let Submission { pictures, options, lease } = submission;
    let Some(name) = options.head else {
        return Err(Problem::new(Code::BadParameter, "head: the name of a linear depth head; GET /v1/models lists them as depth_heads"));
    };
    let (served, head) = heads::find(&app, &name, options.model.as_deref(), Task::Depth)?;
    let Some(range) = head.description().depth else {
        return Err(Problem::new(Code::Internal, format!("head {name} has no range of depths")));
    };
    let inference = heads::see(&app, &served, &head, pictures).await?;
    let (inferred, timing) = (inference.inferred, inference.timing);
    let encoder = Encoder::new(&app);
    let draw = move || {
        let maps = inferred.iter().map(|inferred| map(&served, &head, range, inferred, options.format)).collect::<Result<_, _>>()?;
        encoder.json(&Answer { model: served.name().into(), head: name, results: maps })
    };
    let answer = timed("depth", app.drawing.run(draw)).await??;
    drop(lease);
    Ok(timing.with(answer))
}

fn map(served: &Arc<Served>, head: &LinearHead, range: DepthRange, inferred: &Inferred, format: Format) -> Result<Map, Problem> {
    let (logits, patches) = heads::logits(served, head, inferred)?;
    let depths = Depths::new(logits.view(), patches, range);
    cancel::check()?;
    let (width, height) = inferred.size;
    let (min, max) = depths.values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &depth| (min.min(depth), max.max(depth)));
    let scale = f32::from(u16::MAX) / range.max;
    let rows = || depths.values.chunks(depths.grid.columns).map(<[f32]>::to_vec).collect();
    Ok(Map {
        width,
        height,
        min,
        max,
        depth: (format == Format::Json).then(rows),
        png: (format == Format::Png).then(|| png(&depths.enlarged(heads::pixels(inferred.size)), scale)).transpose()?,
        scale: (format == Format::Png).then_some(scale),
        heatmap: (format == Format::Heatmap).then(|| Heatmap::new(&depths.values, depths.grid)),
    })
}

fn png(depths: &Depths, scale: f32) -> Result<String, Problem> {
    let numbers = depths.values.iter().map(|depth| (depth * scale).round().clamp(0.0, f32::from(u16::MAX)) as u16);
    let bytes: Vec<u8> = numbers.flat_map(u16::to_ne_bytes).collect();
    let mut file = Vec::new();
    let (width, height) = (depths.grid.columns as u32, depths.grid.rows as u32);
    let written = PngEncoder::new(&mut file).write_image(&bytes, width, height, ExtendedColorType::L16);
    written.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(STANDARD.encode(file))
}
