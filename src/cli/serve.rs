//! `dino-server serve`: options, models, collections, then the listening socket.

use std::{net::TcpListener, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use dino_program::signals;
use dino_server::{
    config::ServeArgs,
    embedding_cache::EmbeddingCache,
    fetch::Fetcher,
    http::{self, App, Endpoint, KeyRing, ShutdownSignal, State, Timeouts},
    index::{self, Opening},
    serving::Registry,
    telemetry,
    traces::Traces,
};

/// Time that clients are given to read their answers once those are ready, after SIGTERM.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Serves until a signal ends it.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    super::memory::give_back();
    // Nothing has been answered yet that would have to be finished.
    let starting = signals::end_while_starting()?;
    args.check()?;
    let ServeArgs { models, http: options, cache, collections, urls, log } = args;
    telemetry::start(log.log_format);
    // Until the server has ended.
    let _traces = log.otlp.as_ref().map(Traces::start).transpose().context("--otlp")?;
    // The ports first, so that one that is in use is reported before models are loaded.
    let listeners = http::bind(&options.listen)?;
    let watch = options.metrics_listen.as_ref().map(http::bind).transpose()?;
    let keys = KeyRing::read(options.key_source()).map_err(|reason| {
        let file = options.api_keys_file.as_deref().unwrap_or(Path::new(""));
        anyhow::anyhow!("--api-keys-file {}: {reason}", file.display())
    })?;
    let fetcher = Fetcher::new(&urls, options.max_body).context("--url-ca")?;
    // Beside the models, which take their time too.
    let (store, opening) = collections.open(options.request_timeout)?;
    let embeddings = EmbeddingCache::open(&cache).context("--embedding-cache-dir")?;
    let state = State::new(&options, keys, Registry::load(models)?, store, fetcher).with_embedding_cache(embeddings);
    let app = Arc::new(if log.otlp.is_some() { state.traced() } else { state });
    let timeouts = Timeouts { head: options.read_timeout, write: options.write_timeout, drain: options.request_timeout + ANSWER_TIME };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(async {
        let stop = ShutdownSignal::new()?;
        http::watch_keys(app.clone())?;
        starting.is_over();
        announce("listening", &listeners)?;
        let mut endpoints = vec![Endpoint { listeners, routes: http::routes(app.clone()) }];
        if let Some(listeners) = watch {
            announce("metrics", &listeners)?;
            endpoints.push(Endpoint { listeners, routes: http::watch_routes(app.clone()) });
        }
        tokio::select! {
            // A store that is found to be damaged meanwhile ends the server as one that could not be opened.
            biased;
            error = failure(opening, app) => Err(error.into()),
            served = http::serve(endpoints, timeouts, options.max_connections, stop) => Ok(served?),
        }
    })
}

fn announce(what: &str, listeners: &[TcpListener]) -> std::io::Result<()> {
    for listener in listeners {
        tracing::info!("{what} on http://{}", listener.local_addr()?);
    }
    Ok(())
}

/// Waits for an error, and does not return where there is none. Collections that have been opened are compared with the models.
async fn failure(opening: Opening, app: App) -> index::Error {
    match opening.finished().await {
        Ok(()) => {
            http::report_unmatched_collections(&app);
            std::future::pending().await
        }
        Err(error) => error,
    }
}
