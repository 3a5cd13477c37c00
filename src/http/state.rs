//! What the routes work with.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderValue;

use super::{
    BodyLimits, BodyMemory, DuplicateFinder, KeyRing, MapBuilder, Metrics, MinSimilarities, Options, OriginPolicy, PatchBanks, Problem,
    StoreImages, Transfers,
    health::STORE_FRESHNESS,
    quota::{Budget, Quota},
    single_flight::SingleFlight,
};
use crate::{
    embedding_cache::EmbeddingCache,
    fetch::Fetcher,
    index::Store,
    serving::{Pool, Registry},
};
use dino_vision::{batch::Admission, cores, media};

/// Requests that may wait for the disk at once; they take a thread each and next to no memory.
const DISK_THREADS: usize = 64;

/// Pictures that are fetched at once, over all requests.
const FETCH_THREADS: usize = 32;

/// What every route can reach.
pub type App = Arc<State>;

/// Models, collections and limits of one server.
pub struct State {
    /// The models that are served.
    pub(super) registry: Registry,
    /// The collections, if there is a place for them.
    pub(super) store: Option<Arc<dyn Store>>,
    /// Whether the collections can be read and written, asked once for many.
    pub(super) store_check: SingleFlight<Result<(), Problem>>,
    /// The bound on pictures inside the server.
    pub(super) admission: Admission,
    /// The memory that request bodies share.
    pub(super) bodies: BodyMemory,
    /// The memory that answers share.
    pub(super) answers: Arc<Quota>,
    /// Disk space for temporary files of snapshots.
    pub(super) scratch: Arc<Quota>,
    /// Threads for decoding, parsing and encoding: work whose size is that of what was sent or is answered.
    pub(super) pool: Pool,
    /// Threads for segmenting and drawing, which may take long for a single picture.
    pub(super) drawing: Pool,
    /// Threads for searches here, which take as long as collections are large.
    pub(super) searches: Pool,
    /// The one thread that measures indexes: that is many searches in a row.
    pub(super) measuring: Pool,
    /// Threads that wait for the disk: many, so that writes that come together become durable together.
    pub(super) disk: Pool,
    /// Fetches pictures that were sent as URLs.
    pub(super) fetcher: Fetcher,
    /// Threads that wait for the network.
    pub(super) fetches: Pool,
    /// What is kept of pictures that become items.
    pub(super) store_images: StoreImages,
    /// Largest snapshot that is taken, in bytes.
    pub(super) max_snapshot: u64,
    /// Snapshots that are written or restored.
    pub(super) transfers: Transfers,
    /// What one request may ask for.
    pub(super) limits: RequestLimits,
    /// Longer side in pixels for `/segment`.
    pub(super) segment_size: u32,
    /// Makes and caches the maps of collections.
    pub(super) maps: MapBuilder,
    /// Compares the items of collections with each other, and keeps what it found.
    pub(super) duplicates: DuplicateFinder,
    /// The patches of collections of patches, in memory.
    pub(super) patch_banks: PatchBanks,
    /// How similar the nearest item of a collection has to be, where a request does not say.
    pub(super) min_similarities: MinSimilarities,
    /// Embeddings that were computed before, where they are kept.
    pub(super) embeddings: Option<EmbeddingCache>,
    /// What is counted.
    pub(super) metrics: Metrics,
    /// Whether `/metrics` is among the routes, and not on a port of its own.
    pub(super) serve_metrics: bool,
    /// The API keys; without any, requests need none.
    pub(super) keys: KeyRing,
    /// Origins of the web pages that CORS lets in.
    pub(super) origins: Vec<HeaderValue>,
    /// Refuses requests of web pages of other origins.
    pub(super) origin_policy: OriginPolicy,
    /// The same for the port of health and metrics.
    pub(super) watch_origin_policy: OriginPolicy,
    /// Whether requests are recorded for a collector of traces.
    pub(super) is_traced: bool,
    /// When the server was started.
    pub(super) started: Instant,
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestLimits {
    /// Size of the body and time for it.
    pub(super) body: BodyLimits,
    /// Number of pictures.
    pub(super) pictures: usize,
    /// Declared size of a picture.
    pub(super) media: media::Limits,
    /// Time from the arrival of the head to the answer.
    pub(super) time: Duration,
    /// Time for a client to take the next part of an answer.
    pub(super) write: Duration,
}

impl State {
    /// What the routes work with, of parts that have been opened.
    pub fn new(options: &Options, keys: KeyRing, registry: Registry, store: Option<Arc<dyn Store>>, fetcher: Fetcher) -> Self {
        let cores = cores::available();
        let (listen, origins) = (&options.listen, &options.cors_origins);
        Self {
            store,
            store_check: SingleFlight::new(STORE_FRESHNESS),
            admission: Admission::new(options.queue),
            bodies: BodyMemory::new(options.body_memory),
            answers: Arc::new(Quota::new(Budget::Answers, options.answer_memory)),
            scratch: Arc::new(Quota::new(Budget::Scratch, options.scratch_space())),
            pool: Pool::new(cores),
            drawing: Pool::new(cores),
            searches: Pool::new(cores),
            measuring: Pool::new(1),
            disk: Pool::new(DISK_THREADS),
            fetcher,
            fetches: Pool::new(FETCH_THREADS),
            store_images: options.store_images,
            max_snapshot: options.max_snapshot,
            transfers: Transfers::default(),
            limits: RequestLimits {
                body: BodyLimits { bytes: options.max_body, time: options.read_timeout },
                pictures: options.max_pictures,
                media: media::Limits::with_max_pixels(options.max_pixels),
                time: options.request_timeout,
                write: options.write_timeout,
            },
            segment_size: registry.segment_size(),
            maps: MapBuilder::default(),
            duplicates: DuplicateFinder::default(),
            patch_banks: PatchBanks::new(cores),
            min_similarities: MinSimilarities::default(),
            embeddings: None,
            metrics: Metrics::default(),
            serve_metrics: options.metrics_listen.is_none(),
            origin_policy: OriginPolicy::new(listen.is_loopback(), !keys.is_empty(), origins),
            watch_origin_policy: OriginPolicy::new(options.metrics_listen.as_ref().unwrap_or(listen).is_loopback(), false, origins),
            keys,
            origins: origins.clone(),
            is_traced: false,
            started: Instant::now(),
            registry,
        }
    }

    /// The same server, which keeps embeddings.
    #[must_use]
    pub fn with_embedding_cache(self, embeddings: Option<EmbeddingCache>) -> Self {
        Self { embeddings, ..self }
    }

    /// The same server, whose requests are recorded for a collector of traces.
    #[must_use]
    pub fn traced(self) -> Self {
        Self { is_traced: true, ..self }
    }
}
