//! `GET …/map`: the items of a collection on a plane, like beside like.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use ndarray::Array2;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        App,
        parameters::{CollectionPath, PathOf, QueryOf},
        problem::{Code, Problem},
        response::JsonBody,
    },
    find,
};
use crate::{
    index::{Collection, CollectionName, Error, Sample, Version},
    serving::Pool,
};
use dino_vision::tsne;

/// Most items on a map: time grows with their number, and memory with its square.
const MAX_POINTS: usize = 3000;
/// Most maps that are kept, each some hundred kilobytes.
const MAX_CACHED: usize = 32;

/// The maps that were made, and the one thread that makes them: a map takes a core for seconds, which pictures shall not wait for.
pub(crate) struct Maps {
    thread: Pool,
    cache: Mutex<BTreeMap<(CollectionName, usize), CachedMap>>,
}

/// A map, and what the collection held when it was made.
struct CachedMap {
    version: Version,
    map: Arc<Map>,
}

impl Default for Maps {
    fn default() -> Self {
        Self { thread: Pool::new(1), cache: Mutex::default() }
    }
}

impl Maps {
    /// The map that was made of just what the collection holds.
    fn find(&self, collection: &dyn Collection, points: usize) -> Result<Option<Arc<Map>>, Error> {
        let now = collection.version()?;
        let cache = self.cache.lock();
        let fitting = cache.get(&(collection.name().clone(), points)).filter(|cache| cache.version == now);
        Ok(fitting.map(|cache| Arc::clone(&cache.map)))
    }

    fn insert(&self, collection: &dyn Collection, points: usize, version: Version, map: &Arc<Map>) {
        let mut cache = self.cache.lock();
        let key = (collection.name().clone(), points);
        if cache.len() >= MAX_CACHED && !cache.contains_key(&key) {
            cache.pop_first();
        }
        cache.insert(key, CachedMap { version, map: Arc::clone(map) });
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "MapOptions")]
pub(in crate::http) struct Options {
    /// Most items on the map, 5 to 3000; of a larger collection a sample, with the newest among it.
    points: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { points: 1000 }
    }
}

/// Items on a plane, like beside like.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MapResponse")]
pub(in crate::http) struct Map {
    collection: String,
    /// Items of the whole collection.
    count: usize,
    /// Older items before newer ones; none where fewer than 5 items are too few for a map.
    points: Vec<Point>,
}

/// An item on the map.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "MapPoint")]
struct Point {
    id: String,
    labels: Vec<String>,
    /// From 0, left, to 1, right.
    x: f32,
    /// From 0, top, to 1, bottom, on the same scale as `x`.
    y: f32,
    /// Whether `…/items/{id}/image` has a picture.
    has_image: bool,
}

pub(super) async fn handle(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    QueryOf(options): QueryOf<Options>,
) -> Result<JsonBody<Map>, Problem> {
    let collection = find(&app, &path.collection).await?;
    let Options { points } = options;
    if !(tsne::FEWEST..=MAX_POINTS).contains(&points) {
        let fewest = tsne::FEWEST;
        return Err(Problem::new(Code::BadParameter, format!("points: must lie between {fewest} and {MAX_POINTS}, not {points}")));
    }
    let (maps, known) = (Arc::clone(&app), Arc::clone(&collection));
    let map = if let Some(map) = app.disk.run(move || maps.maps.find(&*known, points)).await?? {
        map
    } else {
        let inside = Arc::clone(&app);
        app.maps.thread.run(move || make(&inside.maps, &*collection, points)).await??
    };
    Ok(JsonBody::from(&*map))
}

/// Makes a map and keeps it.
fn make(maps: &Maps, collection: &dyn Collection, points: usize) -> Result<Arc<Map>, Problem> {
    // The request that had the thread before may have made it.
    if let Some(map) = maps.find(collection, points)? {
        return Ok(map);
    }
    let Sample { version, items, vectors } = collection.sample(points)?;
    let vectors = Array2::from_shape_vec((items.len(), collection.spec().dim), vectors)
        .map_err(|error| Problem::new(Code::Internal, format!("the vectors of a sample: {error}")))?;
    let places = match tsne::map(vectors, &tsne::Options::default()) {
        Ok(places) => fitted(&places),
        Err(tsne::Error::TooFew(_)) => Vec::new(),
        // Items that are all the same lie in one place.
        Err(tsne::Error::Components) => vec![(0.5, 0.5); items.len()],
        Err(tsne::Error::Cancelled(error)) => return Err(error.into()),
        Err(error) => return Err(Problem::new(Code::Internal, error.to_string())),
    };
    let points_of = items.iter().zip(places).map(|((item, has_picture), (x, y))| {
        let (id, labels) = (item.id.clone(), item.labels.clone());
        Point { id, labels, x, y, has_image: *has_picture }
    });
    let map = Arc::new(Map { collection: collection.name().to_string(), count: version.count, points: points_of.collect() });
    maps.insert(collection, points, version, &map);
    Ok(map)
}

/// Places `[n, 2]` moved and scaled into the unit square, their middle in its middle.
fn fitted(places: &Array2<f32>) -> Vec<(f32, f32)> {
    let bounds = |axis: usize| {
        places.column(axis).iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)))
    };
    let [x, y] = [0, 1].map(bounds);
    let span = (x.1 - x.0).max(y.1 - y.0).max(f32::MIN_POSITIVE);
    let fit = |value: f32, (low, high): (f32, f32)| (value - f32::midpoint(low, high)) / span + 0.5;
    places.rows().into_iter().map(|place| (fit(place[0], x), fit(place[1], y))).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::fitted;

    #[test]
    fn places_fill_the_unit_square_and_keep_their_proportions() {
        assert_eq!(fitted(&array![[-2.0, 1.0], [2.0, 3.0], [0.0, 2.0]]), [(0.0, 0.25), (1.0, 0.75), (0.5, 0.5)]);
        assert_eq!(fitted(&array![[7.0, 7.0], [7.0, 7.0]]), [(0.5, 0.5), (0.5, 0.5)]);
    }
}
