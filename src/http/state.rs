//! What the routes work with.

use std::{
    io::{IsTerminal, stderr},
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use axum::http::HeaderValue;
use tokio::sync::oneshot;

use super::{
    BodyLimits, BodyMemory, Guard, KeyRing, Maps, Metrics, Problem, Transfers,
    health::STORE_FRESHNESS,
    quota::{Budget, Quota},
    single_flight::SingleFlight,
};
use crate::{
    config::{Settings, StoreImages},
    fetch::Fetcher,
    index::{self, EmbeddedStore, PostgresOptions, PostgresStore, Store},
    serving::{LoadError, Pool, Registry},
};
use dino_vision::{batch::Admission, media};

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
    /// The disk that snapshots on their way share.
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
    /// The maps of collections.
    pub(super) maps: Maps,
    /// What is counted.
    pub(super) metrics: Metrics,
    /// Whether `/metrics` is among the routes, and not on a port of its own.
    pub(super) serve_metrics: bool,
    /// The API keys; without any, requests need none.
    pub(super) keys: KeyRing,
    /// Web pages of other origins that may ask.
    pub(super) origins: Vec<HeaderValue>,
    /// What turns the others away.
    pub(super) guard: Guard,
    /// The same for the port of health and metrics.
    pub(super) watch_guard: Guard,
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

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A model cannot be served.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// The collections cannot be opened.
    #[error(transparent)]
    Collections(#[from] index::Error),
}

/// The collections as they are read into memory while the server answers already.
pub struct Opening(oneshot::Receiver<Result<(), index::Error>>);

impl Opening {
    /// Waits until all of them are loaded.
    ///
    /// # Errors
    /// Those of [`EmbeddedStore::open`].
    pub async fn finished(self) -> Result<(), index::Error> {
        // The panic of a thread that answers nothing is in the log.
        self.0.await.unwrap_or_else(|_| Err(index::Error::Io(std::io::Error::other("the thread that loads the collections ended"))))
    }
}

impl State {
    /// Loads the models, and begins to open the collections.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn load(settings: &Settings) -> Result<(Self, Opening), StartError> {
        // Beside the models, which take their time too.
        let (store, opening) = store(settings)?;
        let registry = Registry::load(settings)?;
        let cores = available_parallelism().map_or(1, usize::from);
        let state = Self {
            registry,
            store,
            store_check: SingleFlight::new(STORE_FRESHNESS),
            admission: Admission::new(settings.queue),
            bodies: BodyMemory::new(settings.body_memory),
            answers: Arc::new(Quota::new(Budget::Answers, settings.answer_memory)),
            scratch: Arc::new(Quota::new(Budget::Scratch, settings.scratch_space)),
            pool: Pool::new(cores),
            drawing: Pool::new(cores),
            searches: Pool::new(cores),
            measuring: Pool::new(1),
            disk: Pool::new(DISK_THREADS),
            fetcher: Fetcher::new(settings.fetching.clone()),
            fetches: Pool::new(FETCH_THREADS),
            store_images: settings.store_images,
            max_snapshot: settings.max_snapshot,
            transfers: Transfers::default(),
            limits: RequestLimits {
                body: BodyLimits { bytes: settings.max_body, time: settings.read_timeout },
                pictures: settings.max_pictures,
                media: media::Limits::with_max_pixels(settings.max_pixels),
                time: settings.request_timeout,
                write: settings.write_timeout,
            },
            segment_size: settings.segment_size,
            maps: Maps::default(),
            metrics: Metrics::default(),
            serve_metrics: settings.metrics_listen.is_none(),
            keys: KeyRing::new(settings.key_source.clone(), settings.keys.clone()),
            origins: settings.cors_origins.clone(),
            guard: Guard::new(settings.listen.is_loopback(), !settings.keys.is_empty(), &settings.cors_origins),
            watch_guard: Guard::new(
                settings.metrics_listen.as_ref().unwrap_or(&settings.listen).is_loopback(),
                false,
                &settings.cors_origins,
            ),
            is_traced: settings.otlp.is_some(),
            started: Instant::now(),
        };
        Ok((state, opening))
    }
}

/// The place of the collections, if there is one.
fn store(settings: &Settings) -> Result<(Option<Arc<dyn Store>>, Opening), index::Error> {
    let (done, opening) = oneshot::channel();
    let opening = Opening(opening);
    let options = index::Options {
        exact_below: settings.exact_below,
        progress: stderr().is_terminal(),
        vectors: settings.vectors,
        ..index::Options::default()
    };
    if let Some(url) = &settings.index {
        let options = PostgresOptions {
            index: options,
            connections: settings.index_connections,
            patience: settings.request_timeout,
            scratch: settings.data_dir.clone().unwrap_or_else(std::env::temp_dir),
        };
        let store = PostgresStore::open_when_reachable(url, options)?;
        let _ = done.send(Ok(()));
        return Ok((Some(Arc::new(store)), opening));
    }
    let Some(folder) = &settings.data_dir else {
        let _ = done.send(Ok(()));
        return Ok((None, opening));
    };
    let store = EmbeddedStore::open_in_background(folder, options, |outcome| drop(done.send(outcome)))?;
    Ok((Some(store), opening))
}
