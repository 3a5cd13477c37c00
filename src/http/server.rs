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

/// How long clients may take, and how long they are given at the end.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time for a request's head to arrive. An idle kept-alive connection is closed after it too.
    pub head: Duration,
    /// Time for a client to take the next 64 KiB of an answer.
    pub write: Duration,
    /// Time after SIGTERM or SIGINT in which running requests may finish.
    pub drain: Duration,
    /// Connections at once; further ones are closed at once.
    pub connections: usize,
}

/// Lets so many connections in. Each holds its place in its service, which goes with it, and ends where its client does not read.
#[derive(Clone)]
struct Door {
    places: Arc<Semaphore>,
    write: Duration,
}

impl<I, S> Accept<I, S> for Door {
    type Stream = WriteDeadline<I>;
    type Service = AddExtension<S, Arc<OwnedSemaphorePermit>>;
    type Future = Ready<io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("a connection was closed: there are as many as may be (--max-connections)");
            return ready(Err(io::Error::other("too many connections")));
        };
        ready(Ok((WriteDeadline::new(stream, self.write), Extension(Arc::new(place)).layer(service))))
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

/// The signals that end the server: SIGTERM and SIGINT. From its making on they do not end the process by themselves.
#[derive(Debug)]
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Starts to take notice of them.
    ///
    /// # Errors
    /// When the handlers cannot be set up.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    async fn asked(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Sockets, and what is served on all of them. Each entrance has a limit of connections of its own.
#[derive(Debug)]
pub struct Entrance {
    /// Where connections come from.
    pub listeners: Vec<TcpListener>,
    /// What they may ask for.
    pub routes: Router,
}

/// Serves until `stop`, then stops accepting, finishes what runs, and returns.
///
/// # Errors
/// When a socket cannot be set up.
pub async fn serve(entrances: Vec<Entrance>, patience: Patience, stop: Stop) -> io::Result<()> {
    let control = Control::new();
    let stopper = control.clone();
    tokio::spawn(async move {
        stop.asked().await;
        tracing::info!("stopping: running requests may finish");
        stopper.graceful_shutdown(Some(patience.drain));
    });
    let mut servers = Vec::new();
    for Entrance { listeners, routes } in entrances {
        let places = Arc::new(Semaphore::new(patience.connections.min(Semaphore::MAX_PERMITS)));
        let door = Door { places, write: patience.write };
        for listener in listeners {
            let handle = Handle::<SocketAddr>::with_control(control.clone());
            // HTTP/1 alone: telling versions apart would wait for a first byte without any time limit.
            let mut server = axum_server::from_tcp(listener)?.acceptor(door.clone()).handle(handle).http1_only();
            let failures = AcceptFailures::default();
            server = server.accept_error_handler(move |client, error| {
                // A connection that was turned away at the door has been logged there.
                if client.is_none() {
                    failures.log(error);
                }
            });
            server.http_builder().http1().header_read_timeout(patience.head);
            servers.push(server.serve(routes.clone().into_make_service()));
        }
    }
    try_join_all(servers).await?;
    tracing::info!("stopped");
    Ok(())
}
