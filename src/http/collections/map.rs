//! `GET …/map`: the items of a collection on a plane, like beside like.

use std::sync::Arc;

use axum::extract::State;
use ndarray::Array2;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        App,
        answer::Encoder,
        parameters::{CollectionPath, PathOf, QueryOf},
        problem::{Code, Problem},
        response::JsonBody,
        versioned_cache::{MemoryUse, VersionedCache},
    },
    find,
};
use crate::{
    index::{Collection, CollectionName, Error, Sample},
    serving::Pool,
};
use dino_vision::tsne;

/// Most items on a map: time grows with their number, and memory with its square.
const MAX_POINTS: usize = 3000;
/// Memory of the maps that are kept, in bytes: labels may make one of them large.
const MAX_CACHED: u64 = 64 << 20;

/// Makes maps on a thread of its own and caches them. A map takes a core for seconds: on the pool, pictures would wait for it.
pub(crate) struct MapBuilder {
    thread: Pool,
    /// By collection and number of points.
    cache: VersionedCache<(CollectionName, usize), Map>,
}

impl Default for MapBuilder {
    fn default() -> Self {
        Self { thread: Pool::new(1), cache: VersionedCache::new(MAX_CACHED) }
    }
}

impl MapBuilder {
    /// The map that was made of just what the collection holds.
    fn find(&self, collection: &dyn Collection, points: usize) -> Result<Option<Arc<Map>>, Error> {
        let now = collection.version()?;
        Ok(self.cache.find(&(collection.name().clone(), points), now))
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

impl MemoryUse for Map {
    fn bytes(&self) -> usize {
        let label = |label: &String| size_of::<String>() + label.capacity();
        let point = |point: &Point| size_of::<Point>() + point.id.capacity() + point.labels.iter().map(label).sum::<usize>();
        size_of::<Self>() + self.collection.capacity() + self.points.iter().map(point).sum::<usize>()
    }
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
    let encoder = Encoder::new(&app);
    app.pool.run(move || encoder.json(&*map)).await?
}

/// Makes a map and keeps it.
fn make(maps: &MapBuilder, collection: &dyn Collection, points: usize) -> Result<Arc<Map>, Problem> {
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
        // Identical vectors have no principal components: all items get one point.
        Err(tsne::Error::Components) => vec![(0.5, 0.5); items.len()],
        Err(tsne::Error::Cancelled(error)) => return Err(error.into()),
        Err(error) => return Err(Problem::new(Code::Internal, error.to_string())),
    };
    let points_of = items.iter().zip(places).map(|((item, has_picture), (x, y))| {
        let (id, labels) = (item.id.clone(), item.labels.clone());
        Point { id, labels, x, y, has_image: *has_picture }
    });
    let map = Arc::new(Map { collection: collection.name().to_string(), count: version.count, points: points_of.collect() });
    maps.cache.insert((collection.name().clone(), points), version, Arc::clone(&map));
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
