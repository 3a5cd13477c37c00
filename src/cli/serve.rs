//! `dino-server serve`: settings, models, collections, then the listening socket.

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::Context;
use dino_program::signals;
use dino_server::{
    config::ServeArgs,
    http::{self, App, Entrance, Opening, Patience, State, Stop},
    index, telemetry,
    traces::Traces,
};

/// Time that clients are given to read their answers once those are ready, after SIGTERM.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Serves until a signal ends it.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    super::memory::give_back();
    // Nothing has been answered yet that would have to be finished.
    let starting = signals::end_while_starting()?;
    let settings = args.resolve()?;
    telemetry::start(settings.log_format);
    // Until the server has ended.
    let _traces = settings.otlp.as_ref().map(Traces::start).transpose().context("--otlp")?;
    // The ports first: that one is taken should not come out after a minute of loading.
    let listeners = http::bind(&settings.listen)?;
    let watch = settings.metrics_listen.as_ref().map(http::bind).transpose()?;
    let (state, opening) = State::load(&settings)?;
    let app = Arc::new(state);
    let patience = Patience {
        head: settings.read_timeout,
        write: settings.write_timeout,
        drain: settings.request_timeout + LAST_WORDS,
        connections: settings.max_connections,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(async {
        let stop = Stop::new()?;
        http::watch_keys(app.clone())?;
        starting.is_over();
        announce("listening", &listeners)?;
        let mut entrances = vec![Entrance { listeners, routes: http::routes(app.clone()) }];
        if let Some(listeners) = watch {
            announce("metrics", &listeners)?;
            entrances.push(Entrance { listeners, routes: http::watch_routes(app.clone()) });
        }
        tokio::select! {
            // A store that is found to be damaged meanwhile ends the server as one that could not be opened.
            biased;
            error = failure(opening, app) => Err(error.into()),
            served = http::serve(entrances, patience, stop) => Ok(served?),
        }
    })
}

fn announce(what: &str, listeners: &[TcpListener]) -> std::io::Result<()> {
    for listener in listeners {
        tracing::info!("{what} on http://{}", listener.local_addr()?);
    }
    Ok(())
}

/// Waits for an error, for ever where there is none. Collections that have been opened are compared with the models.
async fn failure(opening: Opening, app: App) -> index::Error {
    match opening.finished().await {
        Ok(()) => {
            http::report_unserved(&app);
            std::future::pending().await
        }
        Err(error) => error,
    }
}
