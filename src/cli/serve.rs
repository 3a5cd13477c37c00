//! `dino-server serve`: settings, models, collections, then the listening socket.

use std::{
    io::{IsTerminal, stderr},
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::Context;
use dino_server::{
    batch::Admission,
    config::{ServeArgs, Settings},
    http::{self, BodyLimits, BodyMemory, Maps, Metrics, Patience, RequestLimits, State},
    index::{self, EmbeddedStore, PostgresOptions, PostgresStore, Store},
    media::{self, Fetcher},
    serving::{Pool, Registry},
    telemetry,
};

/// Time that clients are given to read their answers once those are ready, after SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Requests that may wait for the disk at once; they take a thread each and next to no memory.
const DISK_THREADS: usize = 64;

/// Pictures that are fetched at once, over all requests.
const FETCH_THREADS: usize = 32;

/// Serves until a signal ends it.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.resolve()?;
    telemetry::start(settings.log_format);
    // The port first: that it is taken should not come out after a minute of loading.
    let listener = http::bind(settings.listen)?;
    let address = listener.local_addr()?;
    let watch = settings.metrics_listen.map(http::bind).transpose()?;
    let app = Arc::new(state(&settings)?);
    let patience =
        Patience { head: settings.read_timeout, drain: settings.request_timeout + LAST_WORDS, connections: settings.max_connections };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(async {
        tracing::info!("listening on http://{address}");
        let asked = http::serve(listener, http::routes(app.clone()), patience);
        match watch {
            Some(watch) => {
                tracing::info!("metrics on http://{}", watch.local_addr()?);
                tokio::try_join!(asked, http::serve(watch, http::watch_routes(app), patience)).map(drop)
            }
            None => asked.await,
        }
    })?;
    Ok(())
}

/// Loads what the routes need.
fn state(settings: &Settings) -> anyhow::Result<State> {
    let registry = Registry::load(settings)?;
    let store = store(settings)?;
    let cores = available_parallelism().map_or(1, usize::from);
    Ok(State {
        registry,
        store,
        admission: Admission::new(settings.queue),
        bodies: BodyMemory::new(settings.body_memory),
        pool: Pool::new(cores),
        disk: Pool::new(DISK_THREADS),
        fetcher: Fetcher::new(settings.fetching.clone()),
        fetches: Pool::new(FETCH_THREADS),
        store_images: settings.store_images,
        max_snapshot: settings.max_snapshot,
        restoring: tokio::sync::Mutex::default(),
        limits: RequestLimits {
            body: BodyLimits { bytes: settings.max_body, time: settings.read_timeout },
            pictures: settings.max_pictures,
            media: media::Limits::with_max_pixels(settings.max_pixels),
            time: settings.request_timeout,
        },
        segment_size: settings.segment_size,
        maps: Maps::default(),
        metrics: Metrics::default(),
        serve_metrics: settings.metrics_listen.is_none(),
        keys: settings.keys.clone(),
        origins: settings.cors_origins.clone(),
        started: Instant::now(),
    })
}

/// Opens the place of the collections, if there is one.
fn store(settings: &Settings) -> Result<Option<Arc<dyn Store>>, index::Error> {
    let options = index::Options { exact_below: settings.exact_below, progress: stderr().is_terminal(), ..index::Options::default() };
    if let Some(url) = &settings.index {
        let options = PostgresOptions {
            index: options,
            connections: settings.index_connections,
            patience: settings.request_timeout,
            scratch: settings.data_dir.clone().unwrap_or_else(std::env::temp_dir),
        };
        return Ok(Some(Arc::new(PostgresStore::open_when_reachable(url, options)?)));
    }
    let Some(folder) = &settings.data_dir else { return Ok(None) };
    Ok(Some(Arc::new(EmbeddedStore::open(folder, options)?)))
}
