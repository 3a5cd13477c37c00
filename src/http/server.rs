//! Serving what was bound: slow heads time out, and a signal lets requests finish before the process ends.

use std::{
    future::{Ready, ready},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Extension, Router, middleware::AddExtension};
use axum_server::{Control, Handle, accept::Accept};
use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::Layer;

use super::{App, write_deadline::WriteDeadline};

/// No file descriptors left in this process, and on this machine.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;
/// Least time between two lines about connections that cannot be accepted.
const ACCEPT_FAILURE_EVERY: Duration = Duration::from_secs(5);

/// How long the server waits for clients.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Time for a request's head to arrive. An idle kept-alive connection is closed after it too.
    pub head: Duration,
    /// Time for a client to take the next 64 KiB of an answer.
    pub write: Duration,
    /// Time after SIGTERM or SIGINT in which running requests may finish.
    pub drain: Duration,
}

/// Accepts so many connections at a time. Each holds a permit in its service, and is closed where its client does not read.
#[derive(Clone)]
struct ConnectionLimit {
    permits: Arc<Semaphore>,
    write: Duration,
}

impl<I, S> Accept<I, S> for ConnectionLimit {
    type Stream = WriteDeadline<I>;
    type Service = AddExtension<S, Arc<OwnedSemaphorePermit>>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            tracing::warn!("a connection was closed: there are as many as may be (--max-connections)");
            return ready(Err(io::Error::other("too many connections")));
        };
        ready(Ok((WriteDeadline::new(stream, self.write), Extension(Arc::new(permit)).layer(service))))
    }
}

/// Says that connections cannot be accepted, once in a while: the loop tries again twenty times a second.
#[derive(Default)]
struct AcceptFailures(Mutex<Option<Instant>>);

impl AcceptFailures {
    fn log(&self, error: &io::Error) {
        let mut last = self.0.lock();
        if last.is_some_and(|last| last.elapsed() < ACCEPT_FAILURE_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        let hint = match error.raw_os_error() {
            Some(EMFILE) => {
                "this process has no file descriptors left: raise its limit (ulimit -n, LimitNOFILE) or lower --max-connections"
            }
            Some(ENFILE) => "this machine has no file descriptors left",
            _ => "the server goes on trying",
        };
        tracing::error!(%error, "connections cannot be accepted: {hint}");
    }
}

/// Reads the keys again at each SIGHUP, where they come from a file. Without one SIGHUP ends the program, as a closed terminal should.
///
/// # Errors
/// When the signal handler cannot be set up.
pub fn watch_keys(app: App) -> io::Result<()> {
    if !app.keys.has_file() {
        return Ok(());
    }
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let app = app.clone();
            // A panic there is in the log already, and the keys stay as they are.
            let _ = tokio::task::spawn_blocking(move || app.keys.read_again()).await;
        }
    });
    Ok(())
}

/// The signals that end the server: SIGTERM and SIGINT. Once this is made they do not end the process by themselves.
#[derive(Debug)]
pub struct ShutdownSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl ShutdownSignal {
    /// Installs their handlers.
    ///
    /// # Errors
    /// When the handlers cannot be set up.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits until the process receives one of them.
    async fn received(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Sockets, and the routes that are served on all of them. Each endpoint has a connection limit of its own.
#[derive(Debug)]
pub struct Endpoint {
    /// Where connections come from.
    pub listeners: Vec<TcpListener>,
    /// What they may ask for.
    pub routes: Router,
}

/// Serves until `stop`, then stops accepting, finishes what runs, and returns. Each endpoint has at most `max_connections` at a time;
/// further ones are closed.
///
/// # Errors
/// When a socket cannot be set up.
pub async fn serve(endpoints: Vec<Endpoint>, timeouts: Timeouts, max_connections: usize, stop: ShutdownSignal) -> io::Result<()> {
    let control = Control::new();
    let stopper = control.clone();
    tokio::spawn(async move {
        stop.received().await;
        tracing::info!("stopping: running requests may finish");
        stopper.graceful_shutdown(Some(timeouts.drain));
    });
    let mut servers = Vec::new();
    for Endpoint { listeners, routes } in endpoints {
        let permits = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        let connection_limit = ConnectionLimit { permits, write: timeouts.write };
        for listener in listeners {
            let handle = Handle::<SocketAddr>::with_control(control.clone());
            // HTTP/1 alone: telling versions apart would wait for a first byte without any time limit.
            let mut server = axum_server::from_tcp(listener)?.acceptor(connection_limit.clone()).handle(handle).http1_only();
            let failures = AcceptFailures::default();
            server = server.accept_error_handler(move |client, error| {
                // A connection that was over the limit has been logged there.
                if client.is_none() {
                    failures.log(error);
                }
            });
            server.http_builder().http1().header_read_timeout(timeouts.head);
            servers.push(server.serve(routes.clone().into_make_service()));
        }
    }
    try_join_all(servers).await?;
    tracing::info!("stopped");
    Ok(())
}
