//! `POST …/search`: the nearest items to pictures or to a vector.

use std::borrow::Cow;

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    super::{
        App,
        answer::Encoder,
        infer::infer,
        json::{self, AtMost, Component},
        openapi::{body::OwnJson, schema::with_members},
        parameters::{CollectionPath, PathOf},
        problem::{Code, Problem},
        remote::{self, ImageSource},
        response::{JsonBody, Timed},
        submission::{Content, JsonRequest, Lease, Upload, at_least_one, picture_from_text},
    },
    check_search_bounds, check_total_bounds, find_pictures, model_of, search_pool,
};
use crate::{
    index::{Collection, DEFAULT_EF, Filter, MAX_DIM, Neighbour, Search},
    traces::timed,
};
use dino_vision::vote::DEFAULT_K;

/// Options beside what is searched for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "SearchOptions")]
pub(in crate::http) struct Options {
    /// The model to embed with, or the one that made the vector; it has to be that of the collection.
    model: Option<String>,
    /// Number of neighbours, 1 to 10000.
    k: usize,
    /// Width of the search in the index, 1 to 100000: larger is slower, and finds more.
    ef: usize,
    /// Compare with every item, and do not ask the index.
    exact: bool,
    /// Only items that pass it are found.
    filter: Option<Filter>,
}

impl Default for Options {
    fn default() -> Self {
        Self { model: None, k: DEFAULT_K, ef: DEFAULT_EF, exact: false, filter: None }
    }
}

/// A JSON body: the options with a picture or a vector.
pub(in crate::http) struct Body;

impl JsonSchema for Body {
    fn schema_name() -> Cow<'static, str> {
        "SearchRequest".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let image = json_schema!({ "type": ["string", "null"], "description": "Base64, a data URI, or a URL. Either this or `vector`." });
        let vector = json_schema!({
            "type": ["array", "null"],
            "items": { "type": "number" },
            "description": "As many numbers as the collection has dimensions. Either this or `image`.",
        });
        with_members(Options::json_schema(generator), &[("image", image), ("vector", vector)], &[])
    }
}

impl OwnJson for Body {
    const DESCRIPTION: &'static str = "Pictures are the body itself or parts named `image`. JSON holds one `image` or one `vector`. Options are \
                                       parameters of the query; JSON may hold them too, and counts where both name one.";
}

/// What is near to each picture, in their order, or to the vector.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SearchResponse")]
pub(in crate::http) struct Answer<'a> {
    collection: &'a str,
    results: Vec<Found<'a>>,
}

/// The neighbours of one picture or vector, nearest first.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SearchResult")]
struct Found<'a> {
    neighbors: Vec<Hit<'a>>,
}

/// An item that is near.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Neighbor")]
struct Hit<'a> {
    id: &'a str,
    labels: &'a [String],
    /// Cosine.
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
    Pictures(Vec<ImageSource>),
    Vector(Vec<f32>),
}

/// Errors beside those of the body.
pub(super) const ERRORS: &[Code] = super::items::UPSERT_ERRORS;

pub(super) async fn handle(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    upload: Upload<Options, Body>,
) -> Result<Timed<JsonBody<Answer<'static>>>, Problem> {
    let collection = find_pictures(&app, &path.collection).await?;
    let (mut query, options) = match upload.content {
        Content::Pictures(pictures, options) => (Query::Pictures(pictures.into_iter().map(ImageSource::from).collect()), options),
        Content::Json(request) => app.pool.run(move || from_json(&request)).await??,
    };
    check_search_bounds(options.k, options.ef)?;
    let count = match &query {
        Query::Pictures(pictures) => at_least_one(pictures)?,
        Query::Vector(_) => 0,
    };
    check_total_bounds(count, options.k, options.ef)?;
    let mut lease = Lease::take(&app, count, upload.memory)?;
    if let Query::Pictures(pictures) = &mut query {
        remote::fetch(&app, pictures.iter_mut().enumerate(), &mut lease).await?;
    }
    let (vectors, timing) = vectors(&app, &*collection, query, options.model.as_deref()).await?;
    let encoder = Encoder::new(&app);
    let searching = search_pool(&app).run(move || answer(&*collection, &vectors, &options, &encoder));
    let answer = timed("search", searching).await??;
    drop(lease);
    Ok(Timed { timing, body: answer })
}

fn from_json(request: &JsonRequest) -> Result<(Query, Options), Problem> {
    let refused = |why: String| Problem::new(Code::BadParameter, why);
    let (options, [image, vector]) = json::parse_beside(&request.body, &request.query, json::LONG, ["image", "vector"])?;
    let query = match (image, vector) {
        (Some(image), None) => {
            let text = json::text(image).ok_or_else(|| refused("image: expected base64, a data URI or an address".into()))?;
            Query::Pictures(vec![picture_from_text(text).map_err(|problem| problem.at(0))?])
        }
        (None, Some(vector)) => {
            let vector: AtMost<Component, MAX_DIM> = json::read_member("vector", vector)?;
            Query::Vector(vector.into_vector())
        }
        _ => return Err(refused("expected exactly one of `image` and `vector`".into())),
    };
    Ok((query, options))
}

type Timing = Option<(HeaderName, HeaderValue)>;

async fn vectors(app: &App, collection: &dyn Collection, query: Query, model: Option<&str>) -> Result<(Vec<Vec<f32>>, Timing), Problem> {
    match query {
        Query::Vector(vector) => {
            if let Some(model) = model {
                collection.check_model(&app.registry.fingerprint(model)?)?;
            }
            Ok((vec![vector], None))
        }
        Query::Pictures(pictures) => {
            let pictures = pictures.into_iter().map(|source| source.bytes).collect();
            let served = model_of(app, collection, model)?;
            let transform = served.manifest().transform.clone();
            let inference = infer(app, &served, pictures, move |picture| transform.apply(picture)).await?;
            let vectors = inference.inferred.iter().map(|inferred| served.collection_vector(inferred)).collect::<Result<_, _>>()?;
            Ok((vectors, Some(inference.timing.header())))
        }
    }
}

fn answer(
    collection: &dyn Collection,
    vectors: &[Vec<f32>],
    options: &Options,
    encoder: &Encoder,
) -> Result<JsonBody<Answer<'static>>, Problem> {
    let search = Search { k: options.k, ef: options.ef, exact: options.exact, filter: options.filter.as_ref() };
    let found: Vec<_> = vectors.iter().map(|vector| collection.search(vector, &search)).collect::<Result<_, _>>()?;
    let results = found.iter().map(|neighbours| Found { neighbors: neighbours.iter().map(Hit::from).collect() }).collect();
    let body = encoder.json(&Answer { collection: collection.name().as_str(), results })?;
    Ok(body)
}
