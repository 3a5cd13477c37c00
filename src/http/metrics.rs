//! `GET /metrics`: what Prometheus reads.
//!
//! Counters and histograms are kept as requests pass; what can be looked up (queues, workers, collections) is looked up
//! when it is asked for.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use tokio::time::timeout;

use super::{
    App,
    problem::{Code, Problem},
};
use crate::{index::Recall, manuals::COMMIT, serving::Seen};

/// Longest wait for the sizes of the collections: Prometheus gives up by itself after ten seconds.
const LISTING: Duration = Duration::from_secs(3);
const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    route: String,
    model: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Model {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stage {
    model: String,
    stage: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Workers {
    model: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Loaded {
    model: String,
    device: String,
    precision: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Items {
    collection: String,
    /// `indexed` by the graph, or `scanned` beside it.
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Collection {
    collection: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Connections {
    state: &'static str,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;
type Share = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Everything that is counted.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Times<Route>,
    pictures: Family<Model, Counter>,
    stages: Times<Stage>,
    batches: Times<Model>,
    recall: Family<Collection, Share>,
    inside: Gauge,
    waiting: Family<Model, Gauge>,
    workers: Family<Workers, Gauge>,
    models: Family<Loaded, Gauge>,
    items: Family<Items, Gauge>,
    store_reachable: Gauge,
    store_connections: Family<Connections, Gauge>,
    store_failures: Counter,
}

/// From a tenth of a millisecond to 13 seconds.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 18))
}

fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 8))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("dino");
        let requests = Family::default();
        registry.register("requests", "Requests that were answered", requests.clone());
        let seconds: Times<Route> = Family::new_with_constructor(times);
        registry.register("request_seconds", "Time from a request's head to its answer's head", seconds.clone());
        let pictures = Family::default();
        registry.register("pictures", "Pictures that went through a model", pictures.clone());
        let stages: Times<Stage> = Family::new_with_constructor(times);
        registry.register(
            "stage_seconds",
            "Time of a picture in decode, transform, queue, inference; of a request in encode",
            stages.clone(),
        );
        let batches: Times<Model> = Family::new_with_constructor(sizes);
        registry.register("batch_pictures", "Size of the batch that each picture ran in", batches.clone());
        let recall = Family::default();
        registry.register("index_recall", "Recall of the index as it was last measured at /collections/{c}/recall", recall.clone());
        let inside = Gauge::default();
        registry.register("pictures_inside", "Pictures that wait, are decoded or run", inside.clone());
        let waiting = Family::default();
        registry.register("queue_length", "Pictures that wait for a worker", waiting.clone());
        let workers = Family::default();
        registry.register("workers", "Workers of a model: ready, and lost", workers.clone());
        let models = Family::default();
        registry.register("model_loaded", "Models, with the device that each really uses", models.clone());
        let items = Family::default();
        registry.register("collection_items", "Items of a collection, indexed by a graph or scanned", items.clone());
        let store_reachable = Gauge::default();
        registry.register(
            "store_reachable",
            "Whether the collections can be reached: 0 where their database does not answer",
            store_reachable.clone(),
        );
        let store_connections = Family::default();
        registry.register("store_connections", "Connections to the database of the collections: busy, and idle", store_connections.clone());
        let store_failures = Counter::default();
        registry.register("store_failures", "Times that the database of the collections did not answer", store_failures.clone());
        registry.register(
            "build",
            "Version of the server",
            Info::new([("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT.unwrap_or(""))]),
        );
        Self {
            registry,
            requests,
            seconds,
            pictures,
            stages,
            batches,
            recall,
            inside,
            waiting,
            workers,
            models,
            items,
            store_reachable,
            store_connections,
            store_failures,
        }
    }
}

impl Metrics {
    /// Counts an answer. `route` is the pattern of its path, `model` empty where none ran.
    pub(super) fn answered(&self, route: &str, model: &str, status: StatusCode, took: Duration) {
        let route = route.to_owned();
        self.seconds.get_or_create(&Route { route: route.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&Request { route, model: model.to_owned(), status: status.as_u16() }).inc();
    }

    /// Counts pictures that a model has seen.
    pub(super) fn seen(&self, model: &str, seen: &[Seen]) {
        let stage = |stage| self.stages.get_or_create_owned(&Stage { model: model.to_owned(), stage });
        let (decode, transform, queue, inference) = (stage("decode"), stage("transform"), stage("queue"), stage("inference"));
        let model = Model { model: model.to_owned() };
        let batches = self.batches.get_or_create_owned(&model);
        for picture in seen {
            decode.observe(picture.decoded.as_secs_f64());
            transform.observe(picture.transformed.as_secs_f64());
            queue.observe(picture.waited.as_secs_f64());
            inference.observe(picture.ran.as_secs_f64());
            batches.observe(picture.batch as f64);
        }
        self.pictures.get_or_create(&model).inc_by(seen.len() as u64);
    }

    /// Counts the time that it took to write an answer.
    pub(super) fn encoded(&self, model: &str, took: Duration) {
        self.stages.get_or_create(&Stage { model: model.to_owned(), stage: "encode" }).observe(took.as_secs_f64());
    }

    /// Keeps a measurement of an index.
    pub(super) fn measured(&self, collection: &str, recall: &Recall) {
        self.recall.get_or_create(&Collection { collection: collection.to_owned() }).set(recall.recall);
    }

    /// Looks up what was not counted.
    async fn look(&self, app: &App) {
        self.inside.set(app.admission.inside() as i64);
        for served in app.registry.all().iter() {
            let (name, health) = (served.name().to_owned(), served.health());
            self.waiting.get_or_create(&Model { model: name.clone() }).set(served.waiting() as i64);
            for (state, number) in [("ready", health.ready.saturating_sub(health.lost)), ("lost", health.lost)] {
                self.workers.get_or_create(&Workers { model: name.clone(), state }).set(number as i64);
            }
            let (device, precision) = (served.device().to_string(), served.precision().to_string());
            self.models.get_or_create(&Loaded { model: name, device, precision }).set(1);
        }
        // Collections may have gone since.
        self.items.clear();
        let Some(store) = app.store.clone() else {
            self.store_reachable.set(1);
            return;
        };
        let asked = store.clone();
        let listed = timeout(LISTING, app.disk.run(move || asked.list())).await;
        self.store_reachable.set(1);
        if let Some(connections) = store.connections() {
            self.store_reachable.set(i64::from(connections.reachable));
            for (state, number) in [("busy", connections.busy), ("idle", connections.idle)] {
                self.store_connections.get_or_create(&Connections { state }).set(number as i64);
            }
            self.store_failures.inner().store(connections.failures, Ordering::Relaxed);
        }
        let Ok(Ok(Ok(collections))) = listed else { return };
        for info in collections {
            for (state, number) in [("indexed", info.index.indexed), ("scanned", info.index.scanned)] {
                self.items.get_or_create(&Items { collection: info.name.to_string(), state }).set(number as i64);
            }
        }
    }
}

pub(super) async fn handle(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    app.metrics.look(&app).await;
    let mut text = String::new();
    encode(&mut text, &app.metrics.registry).map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, KIND)], text))
}
