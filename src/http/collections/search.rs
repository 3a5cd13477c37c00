//! `POST …/search`: the nearest items to pictures or to a vector.

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    super::{
        App,
        answer::Encoder,
        infer::infer,
        json::{self, AtMost, Component},
        problem::{Code, Problem},
        remote::{self, Sent},
        submission::{Content, Room, Upload, at_least_one, picture_from_text},
    },
    Name, check_reach, check_together, find, model_of, searchers,
};
use crate::{
    index::{Collection, DEFAULT_EF, Filter, MAX_DIM, Neighbour, Search},
    serving::COLLECTION_POOLING,
    traces::timed,
};
use dino_vision::{embedding, vote::DEFAULT_K};

/// Options beside a picture; in a JSON body also what is searched for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct Options {
    model: Option<String>,
    image: Option<String>,
    #[schemars(with = "Option<Vec<f32>>")]
    vector: Option<AtMost<Component, MAX_DIM>>,
    k: usize,
    ef: usize,
    exact: bool,
    filter: Option<Filter>,
}

impl Default for Options {
    fn default() -> Self {
        Self { model: None, image: None, vector: None, k: DEFAULT_K, ef: DEFAULT_EF, exact: false, filter: None }
    }
}

#[derive(Serialize, JsonSchema)]
pub(in crate::http) struct Answer<'a> {
    collection: &'a str,
    results: Vec<Found<'a>>,
}

/// The neighbours of one picture or vector, nearest first.
#[derive(Serialize, JsonSchema)]
struct Found<'a> {
    neighbors: Vec<Hit<'a>>,
}

#[derive(Serialize, JsonSchema)]
struct Hit<'a> {
    id: &'a str,
    labels: &'a [String],
    similarity: f32,
    metadata: &'a Map<String, Value>,
    /// Whether `…/items/{id}/image` has a picture.
    has_image: bool,
}

impl<'a> From<&'a Neighbour> for Hit<'a> {
    fn from(Neighbour { item, similarity, has_picture }: &'a Neighbour) -> Self {
        Self { id: &item.id, labels: &item.labels, similarity: *similarity, metadata: &item.metadata, has_image: *has_picture }
    }
}

/// What to search for.
enum Query {
    Pictures(Vec<Sent>),
    Vector(Vec<f32>),
}

pub(super) async fn handle(State(app): State<App>, name: Name, upload: Upload<Options>) -> Result<impl IntoResponse, Problem> {
    let collection = find(&app, &name?).await?;
    let (mut query, options) = match upload.content {
        Content::Pictures(_, Options { image: Some(_), .. } | Options { vector: Some(_), .. }) => {
            return Err(Problem::new(Code::BadParameter, "the body is the picture: `image` and `vector` belong into a JSON body"));
        }
        Content::Pictures(pictures, options) => (Query::Pictures(pictures.into_iter().map(Sent::from).collect()), options),
        Content::Json(body) => app.pool.run(move || from_json(&body)).await??,
    };
    check_reach(options.k, options.ef)?;
    let count = match &query {
        Query::Pictures(pictures) => at_least_one(pictures)?,
        Query::Vector(_) => 0,
    };
    check_together(count, options.k, options.ef)?;
    let mut room = Room::take(&app, count, upload.memory)?;
    if let Query::Pictures(pictures) = &mut query {
        remote::fetch(&app, pictures.iter_mut().enumerate(), &mut room).await?;
    }
    let (vectors, header) = vectors(&app, &*collection, query, options.model.as_deref()).await?;
    let encoder = Encoder::new(&app);
    let searching = searchers(&app).run(move || answer(&*collection, &vectors, &options, &encoder));
    let answer = timed("search", searching).await??;
    drop(room);
    Ok((header, answer))
}

fn from_json(body: &[u8]) -> Result<(Query, Options), Problem> {
    let mut options: Options = json::parse(body, &["filter", "image"])?;
    match (options.image.take(), options.vector.take()) {
        (Some(image), None) => Ok((Query::Pictures(vec![picture_from_text(image.into()).map_err(|problem| problem.at(0))?]), options)),
        (None, Some(vector)) => Ok((Query::Vector(vector.into_vector()), options)),
        _ => Err(Problem::new(Code::BadParameter, "expected exactly one of `image` and `vector`")),
    }
}

type Timing = Option<[(HeaderName, HeaderValue); 1]>;

async fn vectors(app: &App, collection: &dyn Collection, query: Query, model: Option<&str>) -> Result<(Vec<Vec<f32>>, Timing), Problem> {
    match query {
        Query::Vector(vector) => {
            if let Some(model) = model {
                collection.check_model(&app.registry.fingerprint(model)?)?;
            }
            Ok((vec![vector], None))
        }
        Query::Pictures(pictures) => {
            let pictures = pictures.into_iter().map(|sent| sent.bytes).collect();
            let served = model_of(app, collection, model)?;
            let transform = served.manifest().transform.clone();
            let inference = infer(app, &served, pictures, move |picture| transform.apply(picture)).await?;
            let registers = served.manifest().registers as usize;
            let pool =
                |seen: &crate::serving::Seen| Ok(embedding::pool(&seen.outputs, registers, COLLECTION_POOLING)?.into_iter().collect());
            let vectors = inference.seen.iter().map(pool).collect::<Result<_, Problem>>()?;
            Ok((vectors, Some(inference.timing.header())))
        }
    }
}

fn answer(collection: &dyn Collection, vectors: &[Vec<f32>], options: &Options, encoder: &Encoder) -> Result<Response, Problem> {
    let search = Search { k: options.k, ef: options.ef, exact: options.exact, filter: options.filter.as_ref() };
    let found: Vec<_> = vectors.iter().map(|vector| collection.search(vector, &search)).collect::<Result<_, _>>()?;
    let results = found.iter().map(|neighbours| Found { neighbors: neighbours.iter().map(Hit::from).collect() }).collect();
    encoder.json(&Answer { collection: collection.name().as_str(), results })
}
