//! `GET /metrics`: what Prometheus reads.
//!
//! Counters and histograms are kept as requests pass. What can be looked up (queues, workers, collections) is looked up for each
//! answer, into gauges of its own: what is gone has no series, and answers that are made at once do not see each other's.

mod exposition;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
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

use self::exposition::{Exposition, to_text};
use super::{
    App, health,
    problem::{Code, Problem},
    response::{FileBody, MediaTypes},
    single_flight::SingleFlight,
};
use crate::{
    index::{Error, Info as Collected, Recall},
    serving::Inferred,
    telemetry,
};
use dino_program::manuals::COMMIT;

/// Longest wait for the sizes of the collections: Prometheus gives up by itself after ten seconds.
const LISTING: Duration = Duration::from_secs(3);
/// A database counts all rows of its tables for a listing. One that took longer than this is not made again for each scrape.
const QUICK: Duration = Duration::from_secs(1);
/// Times that the next one is as far away as the last took beyond that, so that the database spends a twentieth of its time on them.
const REST: u32 = 20;
/// At most: what was stored meanwhile does not show.
const LONGEST_REST: Duration = Duration::from_mins(5);

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
struct Compared {
    model: String,
    device: String,
    output: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Looked {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kept {
    place: &'static str,
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Database {
    database: String,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;
type Ratio = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Everything that is counted.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Times<Route>,
    pictures: Family<Model, Counter>,
    stages: Times<Stage>,
    batches: Times<Model>,
    /// By name of the collection.
    recalls: Mutex<HashMap<String, Measured>>,
    listing: SingleFlight<Listed>,
    /// The last listing that succeeded.
    listed: Mutex<Option<Listing>>,
}

/// What was measured of the collection of a number.
struct Measured {
    number: u64,
    recall: f64,
    at: Instant,
}

/// What is known of all collections, as of one moment.
#[derive(Clone)]
struct Listing {
    collections: Arc<Vec<Collected>>,
    made: Instant,
}

/// What a try to list them came to; no listing where that failed.
#[derive(Clone)]
struct Listed {
    listing: Option<Listing>,
    good_for: Duration,
}

/// What is looked up for one answer.
#[derive(Default)]
struct Found {
    recall: Family<Collection, Ratio>,
    inside: Gauge,
    waiting: Family<Model, Gauge>,
    workers: Family<Workers, Gauge>,
    models: Family<Loaded, Gauge>,
    agreement: Family<Compared, Ratio>,
    lookups: Family<Looked, Counter>,
    kept: Family<Kept, Gauge>,
    items: Family<Items, Gauge>,
    damaged: Family<Collection, Gauge>,
    age: Ratio,
    store_ready: Gauge,
    store_reachable: Gauge,
    store_databases: Family<Database, Gauge>,
    store_connections: Family<Connections, Gauge>,
    store_failures: Counter,
    panics: Counter,
    patch_banks: Gauge,
    patches: Gauge,
    patch_bytes: Gauge,
    patch_reads: Counter,
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
        registry.register("build", "Version of the server", Info::new(build()));
        Self {
            registry,
            requests,
            seconds,
            pictures,
            stages,
            batches,
            recalls: Mutex::default(),
            listing: SingleFlight::by_outcome(|listed: &Listed| listed.good_for),
            listed: Mutex::default(),
        }
    }
}

/// How long a listing is good that took so long. What was deleted a moment ago must not show, unless looking takes long, or
/// longer than the database may. After other errors the next scrape lists them again.
fn freshness(outcome: &Result<Vec<Collected>, Error>, took: Duration) -> Duration {
    match outcome {
        Ok(_) | Err(Error::Slow { .. }) => took.saturating_sub(QUICK).saturating_mul(REST).min(LONGEST_REST),
        Err(_) => Duration::ZERO,
    }
}

/// Version, and the commit where the build was told it.
fn build() -> Vec<(&'static str, &'static str)> {
    let version = ("version", env!("CARGO_PKG_VERSION"));
    std::iter::once(version).chain(COMMIT.map(|commit| ("commit", commit))).collect()
}

impl Metrics {
    /// Counts an answer. `route` is the pattern of its path, `model` empty where none ran.
    pub(super) fn answered(&self, route: &str, model: &str, status: StatusCode, took: Duration) {
        let route = route.to_owned();
        self.seconds.get_or_create(&Route { route: route.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&Request { route, model: model.to_owned(), status: status.as_u16() }).inc();
    }

    /// Counts pictures that a model has run.
    pub(super) fn inferred(&self, model: &str, inferred: &[Inferred]) {
        let stage = |stage| self.stages.get_or_create_owned(&Stage { model: model.to_owned(), stage });
        let (decode, transform, queue, inference) = (stage("decode"), stage("transform"), stage("queue"), stage("inference"));
        let model = Model { model: model.to_owned() };
        let batches = self.batches.get_or_create_owned(&model);
        for picture in inferred {
            decode.observe(picture.decoded.as_secs_f64());
            transform.observe(picture.transformed.as_secs_f64());
            queue.observe(picture.waited.as_secs_f64());
            inference.observe(picture.ran.as_secs_f64());
            batches.observe(picture.batch as f64);
        }
        self.pictures.get_or_create(&model).inc_by(inferred.len() as u64);
    }

    /// Counts the time that it took to write an answer.
    pub(super) fn encoded(&self, model: &str, took: Duration) {
        self.stages.get_or_create(&Stage { model: model.to_owned(), stage: "encode" }).observe(took.as_secs_f64());
    }

    /// Keeps a measurement of an index. `number` is that of the collection.
    pub(super) fn measured(&self, collection: &str, number: u64, recall: &Recall) {
        let measured = Measured { number, recall: recall.recall, at: Instant::now() };
        self.recalls.lock().insert(collection.to_owned(), measured);
    }

    /// All collections; the last ones that are known where they cannot be listed in time.
    async fn list(&self, app: &App) -> Option<Listing> {
        let store = app.store.clone()?;
        let asking = app.clone();
        let listing = self.listing.get(|| async move {
            let list = move || {
                let made = Instant::now();
                let outcome = store.list();
                let good_for = freshness(&outcome, made.elapsed());
                (outcome, made, good_for)
            };
            let failed = |error: &dyn std::fmt::Display| tracing::warn!("the collections cannot be listed for /metrics: {error}");
            match asking.disk.run(list).await {
                Ok((Ok(collections), made, good_for)) => {
                    Listed { listing: Some(Listing { collections: Arc::new(collections), made }), good_for }
                }
                Ok((Err(error), _, good_for)) => {
                    // That they are being loaded shows in what /readyz says.
                    if !matches!(error, Error::Loading(_)) {
                        failed(&error);
                    }
                    Listed { listing: None, good_for }
                }
                Err(error) => {
                    failed(&error);
                    Listed { listing: None, good_for: Duration::ZERO }
                }
            }
        });
        match timeout(LISTING, listing).await {
            Ok(Some(Listed { listing: Some(listing), .. })) => {
                // The measurements of deleted collections are dropped, and those of newer ones than the listing kept.
                let numbers: HashMap<&str, u64> = listing.collections.iter().map(|info| (info.name.as_str(), info.number)).collect();
                self.recalls
                    .lock()
                    .retain(|name, measured| measured.at > listing.made || numbers.get(name.as_str()) == Some(&measured.number));
                let mut listed = self.listed.lock();
                if listed.as_ref().is_none_or(|older| older.made <= listing.made) {
                    *listed = Some(listing.clone());
                }
                Some(listing)
            }
            _ => self.listed.lock().clone(),
        }
    }

    /// Looks up what was not counted.
    async fn look(&self, app: &App) -> Found {
        let found = Found::default();
        found.panics.inc_by(telemetry::panics());
        found.inside.set(app.admission.inside() as i64);
        for served in app.registry.all().iter() {
            let (name, health) = (served.name().to_owned(), served.health());
            found.waiting.get_or_create(&Model { model: name.clone() }).set(served.waiting() as i64);
            for (state, number) in [("ready", health.ready.saturating_sub(health.lost)), ("lost", health.lost)] {
                found.workers.get_or_create(&Workers { model: name.clone(), state }).set(number as i64);
            }
            let (device, precision) = (served.device().to_string(), served.precision().to_string());
            for output in served.agreement().iter().flat_map(|agreement| agreement.outputs()) {
                let label = Compared { model: name.clone(), device: device.clone(), output: output.name.to_string() };
                found.agreement.get_or_create(&label).set(output.cosine);
            }
            found.models.get_or_create(&Loaded { model: name, device, precision }).set(1);
        }
        if let Some(cache) = &app.embeddings {
            let counts = cache.counts();
            for (source, count) in
                [("memory", counts.memory), ("folder", counts.folder), ("shared", counts.shared), ("computed", counts.computed)]
            {
                found.lookups.get_or_create(&Looked { source }).inc_by(count);
            }
            for (place, bytes) in [("memory", Some(cache.memory_bytes())), ("folder", cache.folder_bytes())] {
                if let Some(bytes) = bytes {
                    found.kept.get_or_create(&Kept { place }).set(bytes as i64);
                }
            }
        }
        let held = app.patch_banks.held();
        found.patch_banks.set(held.banks as i64);
        found.patches.set(held.patches as i64);
        found.patch_bytes.set(held.bytes as i64);
        found.patch_reads.inc_by(app.patch_banks.rebuilds());
        let (listing, ready) = tokio::join!(self.list(app), health::check_store(app));
        found.store_ready.set(i64::from(ready.is_ok()));
        found.store_reachable.set(1);
        if let Some(connections) = app.store.as_ref().and_then(|store| store.connections()) {
            found.store_reachable.set(i64::from(connections.reachable));
            for (state, number) in [("busy", connections.busy), ("idle", connections.idle)] {
                found.store_connections.get_or_create(&Connections { state }).set(number as i64);
            }
            found.store_failures.inc_by(connections.failures);
            for state in connections.databases {
                let database = state.database.to_string();
                found.store_databases.get_or_create(&Database { database }).set(i64::from(state.reachable));
            }
        }
        let Some(Listing { collections, made }) = listing else { return found };
        found.age.set(made.elapsed().as_secs_f64());
        let recalls = self.recalls.lock();
        for info in collections.iter() {
            let collection = info.name.to_string();
            for (state, number) in [("indexed", info.index.indexed), ("scanned", info.index.scanned)] {
                found.items.get_or_create(&Items { collection: collection.clone(), state }).set(number as i64);
            }
            if let Some(damaged) = &info.damaged {
                found.damaged.get_or_create(&Collection { collection: collection.clone() }).set(damaged.count as i64);
            }
            if let Some(measured) = recalls.get(&collection).filter(|measured| measured.number == info.number) {
                found.recall.get_or_create(&Collection { collection }).set(measured.recall);
            }
        }
        found
    }
}

impl Found {
    /// Its gauges by name.
    fn registry(self) -> Registry {
        let mut registry = Registry::with_prefix("dino");
        let Self { recall, inside, waiting, workers, models, agreement, items, damaged, age, .. } = self;
        let Self { store_ready, store_reachable, store_databases, store_connections, store_failures, panics, lookups, kept, .. } = self;
        let Self { patch_banks, patches, patch_bytes, patch_reads, .. } = self;
        registry.register("index_recall", "Recall of the index as it was last measured at /collections/{c}/recall", recall);
        registry.register("pictures_inside", "Pictures that wait, are decoded or run", inside);
        registry.register("queue_length", "Pictures that wait for a worker", waiting);
        registry.register("workers", "Workers of a model: ready, and lost", workers);
        registry.register("model_loaded", "Models, with the device that each really uses", models);
        registry.register(
            "device_agreement",
            "Lowest cosine of a model's outputs to those of ONNX Runtime's CPU, as compared at the start; only of other devices",
            agreement,
        );
        registry.register(
            "embedding_cache_lookups",
            "Embeddings by where they came from: memory, the folder, another request that computed them (shared), or the model (computed)",
            lookups,
        );
        registry.register("embedding_cache_bytes", "Bytes of the embeddings that are kept, in memory and in the folder", kept);
        registry.register("collection_items", "Items of a collection, indexed by a graph or scanned", items);
        registry.register("collection_items_damaged", "Stored items of a collection that cannot be read", damaged);
        registry.register(
            "collections_age_seconds",
            "Age of what is said of collections, which grows while they cannot be listed, and between listings that take long",
            age,
        );
        registry.register(
            "store_ready",
            "Whether the collections can be read and written: 0 while the disk is full, the data folder is gone, or the database does not answer",
            store_ready,
        );
        registry.register(
            "store_reachable",
            "Whether the collections can be reached: 0 where their database does not answer",
            store_reachable,
        );
        registry.register(
            "store_database_reachable",
            "Whether a database can be reached, of several that hold the collections together",
            store_databases,
        );
        registry.register("store_connections", "Connections to the database of the collections: busy, and idle", store_connections);
        registry.register("store_failures", "Times that the database of the collections did not answer", store_failures);
        registry.register("panics", "Parts of the server that failed and were caught; the log has each of them", panics);
        registry.register("patch_banks", "Collections whose patches are in memory", patch_banks);
        registry.register("patch_bank_patches", "Patches in memory, of all such collections", patches);
        registry.register(
            "patch_bank_bytes",
            "Bytes of the patches in memory, as of when each collection was last asked about",
            patch_bytes,
        );
        registry.register("patch_bank_reads", "Times that all patches of a collection were read from the store into memory", patch_reads);
        registry
    }
}

/// Metrics in one of the formats that Prometheus reads.
pub(super) struct MetricsFile;

impl MediaTypes for MetricsFile {
    const NAMES: &'static [&'static str] = &["application/openmetrics-text", "text/plain"];
}

pub(super) async fn handle(State(app): State<App>, headers: HeaderMap) -> Result<FileBody<MetricsFile>, Problem> {
    let found = app.metrics.look(&app).await.registry();
    let mut text = String::new();
    encode_registry(&mut text, &app.metrics.registry)
        .and_then(|()| encode_registry(&mut text, &found))
        .and_then(|()| encode_eof(&mut text))
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let exposition = Exposition::wanted_by(&headers);
    if exposition == Exposition::Text {
        text = to_text(&text);
    }
    Ok(FileBody::new(exposition.kind(), ([(header::VARY, "accept")], text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_kept_by_the_time_that_they_took() {
        let slow = || Err(Error::Slow { database: "d".to_owned(), reason: "a lock".to_owned() });
        for (took, seconds) in [(0, 0), (900, 0), (1100, 2), (4000, 60), (60_000, 300), (u64::MAX, 300)] {
            let took = Duration::from_millis(took);
            for outcome in [Ok(Vec::new()), slow()] {
                assert_eq!(freshness(&outcome, took), Duration::from_secs(seconds), "{outcome:?} in {took:?}");
            }
            assert_eq!(freshness(&Err(Error::Unreachable("off".to_owned())), took), Duration::ZERO, "{took:?}");
        }
    }
}
