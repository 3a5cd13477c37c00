//! `POST /collections/{c}/anomaly`: how far pictures are from the good ones that a collection of patches holds, and where.

use std::sync::Arc;

use axum::extract::State;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ndarray::Array2;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        App,
        answer::Encoder,
        infer::{declared_pixels, infer},
        parameters::{CollectionPath, PathOf},
        problem::{Code, Problem},
        response::{JsonBody, Timed},
        submission::Submission,
    },
    find, model_of, patch_banks, patches,
};
use crate::{
    index::{PatchBank, PatchOptions},
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::{
    anomaly::{DEFAULT_TOP, Region, enlarged, foreground, mean_of_largest, regions},
    cancel,
    segment::Heatmap,
    transform::PatchGrid,
};

/// Most pixels of all pictures of a request whose maps are drawn. A map takes four bytes for each, twice, and up to 17 files are made of
/// it, which stay in memory until the answer is sent.
const MAX_MAP_PIXELS: u64 = 32_000_000;
/// Most regions of one picture.
const MAX_REGIONS: usize = 16;
/// Most stored pictures that are named.
const MAX_NAMED: usize = 10;

/// How maps are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AnomalyFormat")]
enum Format {
    /// The distances of the patches as numbers.
    #[default]
    Json,
    /// Their bytes in base64, a tenth of the size.
    Heatmap,
    /// The map of the picture's own size as a PNG file in base64, and the regions that are farther than the threshold.
    Png,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "AnomalyOptions")]
pub(in crate::http) struct Options {
    /// The model; without it the one that made the collection.
    model: Option<String>,
    format: Format,
    /// The score above which a picture is anomalous, at least 0. Without it that of the collection: what its own pictures score when
    /// each is left out in turn.
    threshold: Option<f32>,
    /// Share of the patches, those with the largest distances, whose mean is the score; above 0, at most 1.
    top: f64,
    /// Leave out the background: patches on whose side of the first principal component the object is not count as 0.
    masking: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { model: None, format: Format::default(), threshold: None, top: DEFAULT_TOP, masking: false }
    }
}

impl Options {
    fn check(&self) -> Result<(), Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        if !(self.top > 0.0 && self.top <= 1.0) {
            return refused(format!("top: must be above 0 and at most 1, not {}", self.top));
        }
        match self.threshold {
            Some(threshold) if !(threshold >= 0.0 && threshold.is_finite()) => {
                refused(format!("threshold: must be at least 0, not {threshold}"))
            }
            _ => Ok(()),
        }
    }
}

/// What is anomalous in the pictures, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnomalyResponse")]
pub(in crate::http) struct Answer {
    collection: String,
    model: String,
    results: Vec<Found>,
}

/// How far one picture is from the good ones.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Anomaly")]
struct Found {
    /// Mean of the largest distances of its patches, each 1 minus the cosine to the nearest stored patch: 0 for a copy of a good
    /// stored picture while all patches are kept, at most 2. Null where nothing is stored.
    score: Option<f32>,
    /// The score above which a picture is anomalous; null with fewer than two good pictures.
    threshold: Option<f32>,
    /// Whether the score is above the threshold; null where one of them is.
    is_anomalous: Option<bool>,
    /// Of the picture, upright.
    width: u32,
    height: u32,
    /// Of the patches that make the score, the stored pictures that their nearest patches are of, most similar first, at most 10.
    nearest: Vec<Near>,
    /// With `format=json` the distance of each patch, `[rows][columns]`; the grid covers the whole picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    distances: Option<Vec<Vec<f32>>>,
    /// With `format=heatmap` the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<Heatmap>,
    /// With `format=png` the distances enlarged to the picture and smoothed.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<Map>,
    /// With `format=png` the regions of patches that are farther than the threshold, the farthest first, at most 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    masks: Option<Vec<FoundRegion>>,
}

/// A stored picture.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "NearestPicture")]
struct Near {
    id: String,
    similarity: f32,
}

/// A map as a picture.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnomalyMap")]
struct Map {
    /// The distance that is white.
    scale: f32,
    /// A grey PNG file in base64.
    png: String,
}

/// Patches that touch.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AnomalyRegion")]
struct FoundRegion {
    /// `[x, y, width, height]` in pixels of the picture.
    bbox: [u32; 4],
    /// Pixels of the region.
    area: u64,
    /// The largest distance in it.
    score: f32,
    /// A PNG file in base64, white on black.
    png: String,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[
    Code::UnknownModel,
    Code::UnknownCollection,
    Code::ModelMismatch,
    Code::DimensionMismatch,
    Code::ModelLacksOutput,
    Code::QueueFull,
    Code::ItemDamaged,
    Code::StoreFailed,
];

pub(super) async fn handle(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    submission: Submission<Options>,
) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let Submission { pictures, options, lease } = submission;
    options.check()?;
    let collection = find(&app, &path.collection).await?;
    let (Some(how), Some(empty)) = (collection.spec().patches(), PatchBank::of(&*collection)) else {
        let name = collection.name();
        let detail = format!("collection {name} holds pictures: make one of patches (PUT /collections/… with \"kind\": \"patches\")");
        return Err(Problem::new(Code::BadParameter, detail));
    };
    let served = model_of(&app, &*collection, options.model.as_deref())?;
    patches::check_size(&app, pictures.len(), &served, collection.spec(), how)?;
    if options.format == Format::Png {
        check_map_pixels(&app, &pictures).await?;
    }
    let whole_picture = served.whole_picture(how.size);
    let inference = infer(&app, &served, pictures, move |picture| whole_picture(picture).0).await?;
    let (inferred, timing, encoder) = (inference.inferred, inference.timing, Encoder::new(&app));
    let ready = timed("load", patch_banks::ready(&app, &collection, empty)).await?;
    let name = collection.name().to_string();
    let comparing = ready.draw(&app, move |bank: Arc<PatchBank>| -> Result<_, Problem> {
        let threshold = match options.threshold {
            given @ Some(_) => given,
            None => bank.threshold(options.top, options.masking)?,
        };
        let compare = Compare { bank: &bank, how, threshold, options: &options };
        let results = inferred.iter().map(|inferred| compare.found(&served, inferred)).collect::<Result<_, _>>()?;
        encoder.json(&Answer { collection: name, model: served.name().into(), results })
    });
    let answer = timed("compare", comparing).await??;
    drop(lease);
    Ok(timing.with(answer))
}

/// Refuses maps that are together too large to draw, by what the pictures declare. Those that cannot be read are refused later.
async fn check_map_pixels(app: &App, pictures: &[Bytes]) -> Result<(), Problem> {
    let pixels = declared_pixels(app, pictures.to_vec()).await?;
    if pixels > MAX_MAP_PIXELS {
        let detail = format!(
            "format: maps of {pixels} pixels together are too large to draw, at most {MAX_MAP_PIXELS} in a request: send fewer or smaller \
             pictures, or ask for heatmap"
        );
        return Err(Problem::new(Code::BadParameter, detail));
    }
    Ok(())
}

/// What the pictures of one request are compared with, and how.
struct Compare<'a> {
    bank: &'a Arc<PatchBank>,
    how: PatchOptions,
    threshold: Option<f32>,
    options: &'a Options,
}

/// The distances of a picture's patches.
struct Distances<'a> {
    values: Vec<f32>,
    grid: PatchGrid,
    /// The nearest stored picture of each, and the cosine; none where nothing is stored.
    nearest: Vec<(&'a str, f32)>,
}

impl Compare<'_> {
    fn found(&self, served: &Served, inferred: &Inferred) -> Result<Found, Problem> {
        let (features, grid) = patches::features(served, inferred, self.how.layer)?;
        let distances = self.distances(&features, grid)?;
        let score = (!distances.nearest.is_empty()).then(|| mean_of_largest(&distances.values, self.options.top));
        let (width, height) = inferred.size;
        let format = self.options.format;
        let (map, masks) = if format == Format::Png { self.drawn(&distances, inferred.size)? } else { (None, None) };
        Ok(Found {
            score,
            threshold: self.threshold,
            is_anomalous: score.zip(self.threshold).map(|(score, threshold)| score > threshold),
            width,
            height,
            nearest: self.nearest(&distances),
            distances: (format == Format::Json).then(|| distances.values.chunks(grid.columns).map(<[f32]>::to_vec).collect()),
            heatmap: (format == Format::Heatmap).then(|| Heatmap::new(&distances.values, grid)),
            map,
            masks,
        })
    }

    fn distances(&self, features: &Array2<f32>, grid: PatchGrid) -> Result<Distances<'_>, Problem> {
        let found = self.bank.bank.nearest(&patches::rows(features))?;
        let mut values: Vec<f32> = found.iter().map(|nearest| nearest.map_or(0.0, |nearest| nearest.distance())).collect();
        if self.options.masking {
            let foreground = foreground(features.view(), grid);
            values.iter_mut().zip(foreground).filter(|(_, is_foreground)| !is_foreground).for_each(|(value, _)| *value = 0.0);
        }
        let nearest = found.iter().flatten().map(|nearest| (nearest.id, nearest.similarity)).collect();
        Ok(Distances { values, grid, nearest })
    }

    /// The stored pictures behind the score.
    fn nearest(&self, distances: &Distances<'_>) -> Vec<Near> {
        let mut order: Vec<usize> = (0..distances.nearest.len()).collect();
        order.sort_by(|&a, &b| distances.values[b].total_cmp(&distances.values[a]));
        order.truncate(((distances.values.len() as f64 * self.options.top) as usize).max(1));
        let mut named: Vec<Near> = Vec::new();
        for (id, similarity) in order.into_iter().rev().map(|at| distances.nearest[at]) {
            if named.len() < MAX_NAMED && named.iter().all(|known| known.id != id) {
                named.push(Near { id: id.to_owned(), similarity });
            }
        }
        named
    }

    /// The map of the picture's own size, and the regions of patches beyond the threshold.
    fn drawn(&self, distances: &Distances<'_>, size: (u32, u32)) -> Result<(Option<Map>, Option<Vec<FoundRegion>>), Problem> {
        let map = enlarged(&distances.values, distances.grid, size);
        cancel::check()?;
        let scale = map.largest().max(self.threshold.unwrap_or_default());
        let found =
            self.threshold.map_or_else(Vec::new, |threshold| regions(&distances.values, distances.grid, size, threshold, MAX_REGIONS));
        let region = |Region { mask, score }: Region| {
            cancel::check()?;
            Ok(FoundRegion { bbox: mask.bbox(), area: mask.area(), score, png: STANDARD.encode(mask.png()?) })
        };
        let masks = found.into_iter().map(region).collect::<Result<_, Problem>>()?;
        Ok((Some(Map { scale, png: STANDARD.encode(map.png(scale)?) }), Some(masks)))
    }
}
