//! `POST /similarity`: what in a picture resembles points or a part of it, or of another picture.

use std::fmt;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::{
    App,
    answer::Encoder,
    drawn_mask::MaskSource,
    infer::infer,
    json::AtMost,
    problem::{Code, Problem},
    response::{JsonBody, Timed},
    submission::Submission,
};
use crate::{
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::{
    cancel, media,
    segment::{self, DrawnMask, Heatmap, Patches},
};

/// Most points of one request: each is answered by a map.
const MAX_POINTS: usize = 256;

/// How maps are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "SimilarityFormat")]
enum Format {
    /// Numbers.
    #[default]
    Json,
    /// Their bytes in base64, a tenth of the size.
    Heatmap,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "SimilarityOptions", extend("example" = { "points": [[4, 4]] }))]
pub(super) struct Options {
    /// The model; without it the first one that is served.
    model: Option<String>,
    /// `[x, y]` in pixels of the first picture, up to 256 of them.
    #[schemars(with = "Vec<[u32; 2]>")]
    points: Points,
    /// A part of the first picture, as a question beside the points or alone: the mean of the patches that it covers.
    mask: Option<MaskSource>,
    /// The picture that is compared with them; the last one where none is named.
    #[serde(deserialize_with = "target")]
    target: Option<usize>,
    format: Format,
}

/// A list, or, as in a query, a string that holds its JSON.
#[derive(Debug, Default)]
struct Points(Vec<(u32, u32)>);

impl<'de> Deserialize<'de> for Points {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        type List = AtMost<(u32, u32), MAX_POINTS>;

        fn refused<E: de::Error>(error: impl fmt::Display) -> E {
            E::custom(format_args!("points must be a list of [x, y] in whole pixels, such as [[120,80]]: {error}"))
        }

        impl<'de> Visitor<'de> for Reader {
            type Value = Points;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("points, a list of [x, y] in whole pixels, such as [[120,80]]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Points, E> {
                serde_json::from_str::<List>(text).map(|list| Points(list.0)).map_err(refused)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Points, A::Error> {
                List::deserialize(SeqAccessDeserializer::new(list)).map(|list| Points(list.0)).map_err(refused)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// A number, or, as in a query, its digits.
fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    struct Reader;

    impl Visitor<'_> for Reader {
        type Value = Option<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the position of a picture, from 0")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<usize>, E> {
            text.parse().map(Some).map_err(E::custom)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Option<usize>, E> {
            usize::try_from(number).map(Some).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Reader)
}

/// How similar the patches of a picture are to points.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SimilarityResponse")]
pub(super) struct Answer {
    model: String,
    /// The picture that the maps lie over.
    target: usize,
    width: u32,
    height: u32,
    /// One per point, in their order, then that of the mask.
    maps: Vec<Map>,
}

/// The map of one point or of the mask, in the format that was asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SimilarityMap")]
struct Map {
    /// None in the map of the mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<[u32; 2]>")]
    point: Option<(u32, u32)>,
    /// True in the map of the mask.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    mask: bool,
    /// Cosines, `[rows][columns]` of patches; the grid covers the whole picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<Heatmap>,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[Code::UnknownModel, Code::ModelLacksOutput];

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let Submission { pictures, mut options, lease } = submission;
    let served = app.registry.get(options.model.as_deref())?;
    let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
    if pictures.len() > 2 {
        return refused(format!("one picture, or two: the points' and the one to compare, not {}", pictures.len()));
    }
    if options.points.0.is_empty() && options.mask.is_none() {
        return refused(format!("points: between 1 and {MAX_POINTS} of them, [[x,y],…] in pixels of the first picture, or a mask of it"));
    }
    let target = options.target.unwrap_or(pictures.len() - 1);
    if target >= pictures.len() {
        return refused(format!("target: there is no picture {target}, the request holds {}", pictures.len()));
    }
    // What the method of the same features asks for.
    segment::Method::Ncut.check(served.outputs())?;
    let mask = match options.mask.take() {
        Some(mask) => {
            let (limits, picture) = (app.limits.media, pictures[0].clone());
            let read = move || {
                let mask = mask.read(&limits)?;
                // A picture that cannot be read is refused with its own reason.
                media::dimensions(&picture, &limits).map_or(Ok(()), |size| mask.check(size))?;
                Ok::<_, Problem>(mask)
            };
            Some(app.pool.run(read).await??)
        }
        None => None,
    };
    let whole_picture = served.whole_picture(app.segment_size);
    let inference = infer(&app, &served, pictures, move |picture| whole_picture(picture).0).await?;
    let (inferred, timing) = (inference.inferred, inference.timing);
    let encoder = Encoder::new(&app);
    let comparing =
        app.drawing.run(move || encoder.json(&answer(&served, &inferred[0], (target, &inferred[target]), &options, mask.as_ref())?));
    let answer = timed("compare", comparing).await??;
    drop(lease);
    Ok(timing.with(answer))
}

fn answer(
    served: &Served,
    source: &Inferred,
    (target, compared): (usize, &Inferred),
    options: &Options,
    mask: Option<&DrawnMask>,
) -> Result<Answer, Problem> {
    let patches = Patches::of(&source.outputs, served.grid(source));
    let others = Patches::of(&compared.outputs, served.grid(compared));
    let grid = others.grid();
    let map = |point: Option<(u32, u32)>, values: &[f32]| {
        let as_json = options.format == Format::Json;
        Map {
            point,
            mask: point.is_none(),
            similarity: as_json.then(|| values.chunks(grid.columns).map(<[f32]>::to_vec).collect()),
            heatmap: (!as_json).then(|| Heatmap::new(values, grid)),
        }
    };
    let of_point = |point: &(u32, u32)| {
        cancel::check()?;
        Ok(map(Some(*point), &segment::similarity(&patches, source.size, *point, &others)?))
    };
    let mut maps = options.points.0.iter().map(of_point).collect::<Result<Vec<_>, Problem>>()?;
    if let Some(mask) = mask {
        mask.check(source.size)?;
        maps.push(map(None, &segment::similarity_to_mask(&patches, &mask.coverage(patches.grid()), &others)?));
    }
    let (width, height) = compared.size;
    Ok(Answer { model: served.name().into(), target, width, height, maps })
}
