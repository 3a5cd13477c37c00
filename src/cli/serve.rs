//! `dino-server serve`: settings, models, collections, then the listening socket.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use dino_server::{
    config::ServeArgs,
    http::{self, Opening, Patience, State},
    index, telemetry,
    traces::Traces,
};

/// Time that clients are given to read their answers once those are ready, after SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Serves until a signal ends it.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.resolve()?;
    telemetry::start(settings.log_format);
    // Until the server has ended.
    let _traces = settings.otlp.as_ref().map(Traces::start).transpose().context("--otlp")?;
    // The port first: that it is taken should not come out after a minute of loading.
    let listener = http::bind(settings.listen)?;
    let address = listener.local_addr()?;
    let watch = settings.metrics_listen.map(http::bind).transpose()?;
    let (state, opening) = State::load(&settings)?;
    let app = Arc::new(state);
    let patience =
        Patience { head: settings.read_timeout, drain: settings.request_timeout + LAST_WORDS, connections: settings.max_connections };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(async {
        tracing::info!("listening on http://{address}");
        let asked = http::serve(listener, http::routes(app.clone()), patience);
        let served = async {
            match watch {
                Some(watch) => {
                    tracing::info!("metrics on http://{}", watch.local_addr()?);
                    tokio::try_join!(asked, http::serve(watch, http::watch_routes(app), patience)).map(drop)
                }
                None => asked.await,
            }
        };
        tokio::select! {
            // A store that is found to be damaged meanwhile ends the server as one that could not be opened.
            biased;
            error = failure(opening) => Err(error.into()),
            served = served => Ok(served?),
        }
    })
}

/// Waits for an error, for ever where there is none.
async fn failure(opening: Opening) -> index::Error {
    match opening.finished().await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}
