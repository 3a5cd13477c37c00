//! The listening socket: slow heads time out, and a signal lets requests finish before the process ends.

use std::{
    future::{Ready, ready},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{Extension, Router, middleware::AddExtension};
use axum_server::{Handle, accept::Accept};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::Layer;

/// Binds `address`, so that an occupied port is found before models are loaded.
///
/// # Errors
/// One sentence that names the address and what to do.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": another program listens there; stop it, or choose another --listen",
            io::ErrorKind::PermissionDenied => ": ports under 1024 need privileges; choose another --listen",
            io::ErrorKind::AddrNotAvailable => ": this machine does not have that address; choose another --listen",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    })
}

/// How long clients may take, and how long they are given at the end.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time for a request's head to arrive. An idle kept-alive connection is closed after it too.
    pub head: Duration,
    /// Time after SIGTERM or SIGINT in which running requests may finish.
    pub drain: Duration,
    /// Connections at once; further ones are closed at once.
    pub connections: usize,
}

/// Lets so many connections in. Each holds its place in its service, which goes with it.
#[derive(Clone)]
struct Door(Arc<Semaphore>);

impl<I, S> Accept<I, S> for Door {
    type Stream = I;
    type Service = AddExtension<S, Arc<OwnedSemaphorePermit>>;
    type Future = Ready<io::Result<(I, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(place) = self.0.clone().try_acquire_owned() else {
            tracing::warn!("a connection was closed: there are as many as may be (--max-connections)");
            return ready(Err(io::Error::other("too many connections")));
        };
        ready(Ok((stream, Extension(Arc::new(place)).layer(service))))
    }
}

/// Serves `routes` until SIGTERM or SIGINT, then stops accepting, finishes what runs, and returns.
///
/// # Errors
/// When the socket or the signal handlers cannot be set up.
pub async fn serve(listener: TcpListener, routes: Router, patience: Patience) -> io::Result<()> {
    let handle = Handle::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopper = handle.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: running requests may finish");
        stopper.graceful_shutdown(Some(patience.drain));
    });

    // HTTP/1 alone: telling versions apart would wait for a first byte without any time limit.
    let door = Door(Arc::new(Semaphore::new(patience.connections.min(Semaphore::MAX_PERMITS))));
    let mut server = axum_server::from_tcp(listener)?.acceptor(door).handle(handle).http1_only();
    server.http_builder().http1().header_read_timeout(patience.head);
    server.serve(routes.into_make_service()).await?;
    tracing::info!("stopped");
    Ok(())
}
