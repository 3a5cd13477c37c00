//! `POST /similarity`: what in a picture resembles a point of it, or a point of another picture.

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
    cancel,
    segment::{self, Heatmap, Patches},
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
    /// One per point.
    maps: Vec<Map>,
}

/// The map of one point, in the format that was asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SimilarityMap")]
struct Map {
    #[schemars(with = "[u32; 2]")]
    point: (u32, u32),
    /// Cosines, `[rows][columns]` of patches; the grid covers the whole picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heatmap: Option<Heatmap>,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] = &[Code::UnknownModel, Code::ModelLacksOutput];

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let Submission { pictures, options, lease } = submission;
    let served = app.registry.get(options.model.as_deref())?;
    let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
    if pictures.len() > 2 {
        return refused(format!("one picture, or two: the points' and the one to compare, not {}", pictures.len()));
    }
    if options.points.0.is_empty() {
        return refused(format!("points: between 1 and {MAX_POINTS} of them, [[x,y],…] in pixels of the first picture"));
    }
    let target = options.target.unwrap_or(pictures.len() - 1);
    if target >= pictures.len() {
        return refused(format!("target: there is no picture {target}, the request holds {}", pictures.len()));
    }
    // What the method of the same features asks for.
    segment::Method::Ncut.check(served.outputs())?;
    let whole_picture = served.whole_picture(app.segment_size);
    let inference = infer(&app, &served, pictures, move |picture| whole_picture(picture).0).await?;
    let (inferred, timing) = (inference.inferred, inference.timing);
    let encoder = Encoder::new(&app);
    let comparing = app.drawing.run(move || encoder.json(&answer(&served, &inferred[0], (target, &inferred[target]), &options)?));
    let answer = timed("compare", comparing).await??;
    drop(lease);
    Ok(timing.with(answer))
}

fn answer(served: &Served, source: &Inferred, (target, compared): (usize, &Inferred), options: &Options) -> Result<Answer, Problem> {
    let patches = Patches::of(&source.outputs, served.grid(source));
    let others = Patches::of(&compared.outputs, served.grid(compared));
    let grid = others.grid();
    let map = |point: &(u32, u32)| {
        cancel::check()?;
        let values = segment::similarity(&patches, source.size, *point, &others)?;
        let as_json = options.format == Format::Json;
        Ok(Map {
            point: *point,
            similarity: as_json.then(|| values.chunks(grid.columns).map(<[f32]>::to_vec).collect()),
            heatmap: (!as_json).then(|| Heatmap::new(&values, grid)),
        })
    };
    let maps = options.points.0.iter().map(map).collect::<Result<_, Problem>>()?;
    let (width, height) = compared.size;
    Ok(Answer { model: served.name().into(), target, width, height, maps })
}
