//! `POST /match`: which places of two pictures show the same.

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    answer::Encoder,
    collections::{patch_bounds, patches},
    infer::infer,
    problem::{Code, Problem},
    response::{JsonBody, Timed},
    submission::Submission,
};
use crate::{
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::correspondence::{Geometry, Match, Matrix, Options as MatchOptions, Side, fit, matches};

/// Most matches of an answer.
const MAX_MATCHES: usize = 10_000;
/// Most comparisons of a patch with a patch: the product of both pictures' numbers of them.
const MAX_COMPARISONS: usize = 1 << 28;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "MatchOptions")]
pub(super) struct Options {
    /// The model; without it the first one that is served.
    model: Option<String>,
    /// The block whose tokens are compared, where the model's folder has it; the last one where none is named.
    layer: Option<u32>,
    /// Longer side in pixels at which the model sees the pictures, at most `--segment-size`, which is the default.
    size: Option<u32>,
    /// Most matches, 1 to 10000.
    max_matches: usize,
    /// Least cosine of a match, -1 to 1.
    min_similarity: Option<f32>,
    /// Each patch has to be the nearest of the other. Otherwise each patch of the first picture has its nearest.
    mutual: bool,
    /// Keep the matches that agree on a geometry of this kind, and say which.
    geometry: Option<Geometry>,
    /// How far in pixels of the second picture a match may be from the geometry; one patch where it is not said.
    tolerance: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        let (model, layer, size, min_similarity, geometry, tolerance) = (None, None, None, None, None, None);
        Self { model, layer, size, max_matches: 200, min_similarity, mutual: true, geometry, tolerance }
    }
}

/// What the model is asked for.
struct Wanted {
    size: u32,
    layer: Option<u32>,
}

impl Options {
    /// Refuses what can be known to fail before a picture is decoded. `largest` is `--segment-size`.
    fn check(&self, served: &Served, pictures: usize, largest: u32) -> Result<Wanted, Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        if pictures != 2 {
            return refused(format!("two pictures are matched, the request holds {pictures}: send exactly two"));
        }
        if !(1..=MAX_MATCHES).contains(&self.max_matches) {
            return refused(format!("max_matches: must lie between 1 and {MAX_MATCHES}, not {}", self.max_matches));
        }
        if let Some(least) = self.min_similarity.filter(|least| !(-1.0..=1.0).contains(least)) {
            return refused(format!("min_similarity: must lie between -1 and 1, not {least}"));
        }
        match (self.geometry, self.tolerance) {
            (None, Some(_)) => return refused("tolerance: belongs to a `geometry`, which is not asked for".into()),
            (_, Some(tolerance)) if !(tolerance > 0.0 && tolerance.is_finite()) => {
                return refused(format!("tolerance: must be above 0 pixels, not {tolerance}"));
            }
            _ => {}
        }
        // First of all that the model decides: without patches their size means nothing.
        let layer = patch_bounds::check_outputs(served, self.layer)?;
        let patch = served.manifest().patch_size.max(1);
        let size = self.size.unwrap_or(largest);
        if self.size.is_some() && !(patch..=largest.max(patch)).contains(&size) {
            return refused(format!("size: must lie between {patch}, a patch of this model, and {largest} (--segment-size), not {size}"));
        }
        let each = served.most_patches(size);
        if each.saturating_mul(each) > MAX_COMPARISONS {
            return refused(format!(
                "size: pictures of up to {each} patches each come to {} comparisons, and a request may take {MAX_COMPARISONS}: ask for a \
                 smaller size",
                each.saturating_mul(each)
            ));
        }
        Ok(Wanted { size, layer })
    }
}

/// Places of two pictures that show the same.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MatchResponse")]
pub(super) struct Answer {
    model: String,
    /// `[width, height]` of each picture, upright, in pixels.
    sizes: [[u32; 2]; 2],
    /// `[rows, columns]` of the patches of each picture.
    grid: [[usize; 2]; 2],
    /// Best first.
    matches: Vec<Pair>,
    /// Where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    geometry: Option<Found>,
}

/// A place in each of both pictures.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Match")]
struct Pair {
    /// `[x, y]` in pixels of the first picture, from its upper left corner: the middle of a patch.
    from: [f32; 2],
    /// `[x, y]` in pixels of the second picture, placed between patches.
    to: [f32; 2],
    /// Cosine of the two patches.
    similarity: f32,
}

/// What the matches agree on.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MatchGeometry")]
struct Found {
    kind: Geometry,
    /// Three rows. It maps `[x, y, 1]` of the first picture to the second one; of `fundamental`, F of x'ᵀ F x = 0. Null where too few
    /// matches agree on one; then there are no matches.
    matrix: Option<Matrix>,
    /// Matches that agree with it, before `max_matches`.
    inliers: usize,
    /// Matches that were looked at.
    candidates: usize,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[Code::UnknownModel, Code::ModelLacksOutput];

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let Submission { pictures, options, lease } = submission;
    let served = app.registry.get(options.model.as_deref())?;
    let Wanted { size, layer } = options.check(&served, pictures.len(), app.segment_size)?;
    let whole_picture = served.whole_picture(size);
    let inference = infer(&app, &served, pictures, move |picture| whole_picture(picture).0).await?;
    let (inferred, timing, encoder) = (inference.inferred, inference.timing, Encoder::new(&app));
    let comparing = app.drawing.run(move || match &inferred[..] {
        [first, second] => encoder.json(&answer(&served, [first, second], layer, &options)?),
        _ => Err(Problem::new(Code::Internal, "a picture has no answer of the model")),
    });
    let answer = timed("compare", comparing).await??;
    drop(lease);
    Ok(timing.with(answer))
}

fn answer(served: &Served, pictures: [&Inferred; 2], layer: Option<u32>, options: &Options) -> Result<Answer, Problem> {
    let [first, second] = pictures.map(|inferred| patches::features(served, inferred, layer));
    let ((first, of_first), (second, of_second)) = (first?, second?);
    let (first, second) = (patches::rows(&first), patches::rows(&second));
    let sides = [(&first, of_first), (&second, of_second)];
    let [from, to] = [0, 1].map(|at| Side { rows: sides[at].0, grid: sides[at].1, size: pictures[at].size });
    let wanted = MatchOptions { mutual: options.mutual, min_similarity: options.min_similarity.unwrap_or(-1.0) };
    let mut found = matches(from, to, wanted)?;
    let geometry = options.geometry.map(|kind| {
        let of_a_patch = || {
            let side = |pixels: u32, cells: usize| f64::from(pixels) / cells.max(1) as f64;
            side(to.size.0, to.grid.columns).max(side(to.size.1, to.grid.rows))
        };
        agreeing(&mut found, kind, options.tolerance.unwrap_or_else(of_a_patch))
    });
    let geometry = geometry.transpose()?;
    found.truncate(options.max_matches);
    Ok(Answer {
        model: served.name().into(),
        sizes: [from, to].map(|side| [side.size.0, side.size.1]),
        grid: [from, to].map(|side| [side.grid.rows, side.grid.columns]),
        matches: found.into_iter().map(|Match { from, to, similarity }| Pair { from, to, similarity }).collect(),
        geometry,
    })
}

/// Keeps the matches that agree on a geometry.
fn agreeing(found: &mut Vec<Match>, kind: Geometry, tolerance: f64) -> Result<Found, Problem> {
    let points: Vec<_> = found.iter().map(|pair| (pair.from.map(f64::from), pair.to.map(f64::from))).collect();
    let fitted = fit(kind, &points, tolerance)?;
    let (matrix, inliers) = fitted.map_or((None, Vec::new()), |fit| (Some(fit.matrix), fit.inliers));
    *found = inliers.iter().map(|&at| found[at]).collect();
    Ok(Found { kind, matrix, inliers: inliers.len(), candidates: points.len() })
}
