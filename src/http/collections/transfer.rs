//! `POST …/snapshot` and `POST …/restore`: a collection as one file, out and in.

use std::{
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, header},
};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use tempfile::NamedTempFile;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::io::ReaderStream;

use super::{
    super::{
        App,
        answer::Counted,
        openapi::body::SnapshotUpload,
        parameters::{CollectionPath, PathOf, QueryOf},
        places::{Places, Taken},
        problem::{Code, Problem},
        quota::{BudgetExceeded, Metered, Reservation},
        request_context,
        response::{Created, FileBody, JsonBody, MediaTypes},
        write_deadline::allowed,
    },
    find, info, patch_bounds, store,
};
use crate::{
    index::{
        CollectionName, Error, Info, OnExisting, Spec, Store,
        snapshot::{self, Snapshot},
    },
    serving::Pool,
};
use dino_vision::cancel;

/// Snapshots that are written or restored at once; each takes a thread and its time with the disk.
const THREADS: usize = 4;
/// Snapshots that are received or restored at once; further ones are refused.
const RESTORES: usize = 4;
/// A sender that is slower than this on the whole, in bytes a second, would hold a place for hours.
const SLOWEST: f64 = 128.0 * 1024.0;

/// When to try again after all places were taken.
const BUSY: Duration = Duration::from_secs(5);

/// Limits that all transfers of snapshots share.
pub(in crate::http) struct Transfers {
    /// Threads of their own, so that other requests find theirs free.
    threads: Pool,
    /// Places for snapshots that are written: others wait.
    written: Places,
    /// A permit for each snapshot that is received or waits to be restored: others are refused.
    received: Places,
    /// The right to restore: one at a time, since memory holds what is restored.
    turn: Arc<Semaphore>,
}

impl Default for Transfers {
    fn default() -> Self {
        Self {
            threads: Pool::new(THREADS),
            written: Places::new(THREADS),
            received: Places::new(RESTORES),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Number of items that cannot be read and are not in a snapshot; the log names them.
const LEFT_OUT: HeaderName = HeaderName::from_static("dino-left-out");

/// A collection in a file.
pub(super) struct SnapshotFile;

const SNAPSHOT: &str = "application/octet-stream";

impl MediaTypes for SnapshotFile {
    const NAMES: &'static [&'static str] = &[SNAPSHOT];
}

/// One file with everything in it, as of this moment.
pub(super) async fn snapshot(State(app): State<App>, PathOf(path): PathOf<CollectionPath>) -> Result<FileBody<SnapshotFile>, Problem> {
    let collection = find(&app, &path.collection).await?;
    let store = store(&app, collection.name())?.clone();
    let name = collection.name().clone();
    // By way of a file: a client that reads slowly would keep old pages of the database in use.
    let reservation = app.scratch.reserve(request_context::key());
    let write = move || -> Result<_, Problem> {
        let mut file = store.scratch()?;
        let mut out = Metered::new(CancellableWriter(std::io::BufWriter::new(file.as_file_mut())), reservation);
        let written = snapshot::write(&*collection, &mut out);
        if let Some(full) = out.full() {
            return Err(full.into());
        }
        let left_out = written?.len();
        let (_, reservation) = out.into_parts();
        // A snapshot that cannot be restored must not look like one that can.
        snapshot::verify(file.path())?;
        // An open file can be read after it was unlinked, and a crash leaves none behind.
        let file = file.reopen().map_err(Error::Io)?;
        let length = file.metadata().map_err(Error::Io)?.len();
        Ok((file, length, left_out, reservation))
    };
    let place = app.transfers.written.take(request_context::key().as_deref()).await;
    let write = move || {
        // Moved into the work, which continues for a moment after the request was cancelled.
        let _place = place;
        write()
    };
    let (file, length, left_out, reservation) = app.transfers.threads.run(write).await??;
    let headers = [
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}.dino\"")),
        (LEFT_OUT, left_out.to_string()),
    ];
    // The reservation goes when the file does.
    let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(file), 1 << 18);
    let (begun, timeout, mut sent) = (Instant::now(), app.limits.write, 0);
    // A client may not hold it for hours by taking little at a time: an error here closes the connection.
    let chunks = chunks.map(move |chunk| {
        let _held = &reservation;
        if begun.elapsed() > allowed(timeout, sent) {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
        }
        sent += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        chunk
    });
    Ok(FileBody::new(SNAPSHOT, (headers, Extension(Counted), Body::from_stream(chunks))))
}

/// Writes until the request is cancelled.
struct CancellableWriter<W>(W);

impl<W: Write> Write for CancellableWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        cancel::check().map_err(std::io::Error::other)?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "RestoreOptions")]
pub(in crate::http) struct Options {
    /// Delete the collection that is there, in the same step.
    replace: bool,
}

/// Errors of a restore.
pub(super) const RESTORE_ERRORS: &[Code] =
    &[Code::BadBody, Code::BodyTimeout, Code::CollectionExists, Code::BodyTooLarge, Code::BadSnapshot, Code::QueueFull, Code::StoreFailed];

/// Makes a collection of a snapshot, all of it or nothing.
pub(super) async fn restore(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    options: Result<QueryOf<Options>, Problem>,
    file: SnapshotUpload,
) -> Result<Created<JsonBody<Info>>, Problem> {
    let (parts, body) = file.0.into_parts();
    let checked = || -> Result<_, Problem> {
        let name: CollectionName = path.collection.parse()?;
        let store = store(&app, &name)?.clone();
        // Before the upload, which may be long: it could not be restored after it.
        if let Some(loading) = store.loading().filter(|loading| loading.of.is_none() || loading.collections.contains(&name)) {
            return Err(Error::Loading(loading.to_string()).into());
        }
        let QueryOf(options) = options?;
        check_length(&parts.headers, app.max_snapshot)?;
        let place = app.transfers.received.try_take(request_context::key().as_deref()).map_err(|taken| {
            let (code, detail) = match taken {
                Taken::All => (Code::QueueFull, format!("{RESTORES} other snapshots are being received or restored: try again later")),
                Taken::ByKey { most } => {
                    let detail =
                        format!("{most} other snapshots of this API key are being received or restored, half of all: try again later");
                    (Code::RateLimited, detail)
                }
            };
            Problem { retry_after: Some(BUSY), ..Problem::new(code, detail) }
        })?;
        Ok((name, store, options, place))
    };
    let (name, store, options, place) = checked()?;
    let (file, reservation) = receive(&app, &store, body).await?;
    let existing = if options.replace { OnExisting::Replace } else { OnExisting::Refuse };
    // Not before all of it is here: a slow sender does not hold up other restores.
    let turn = app.transfers.turn.clone().acquire_owned().await.expect("this semaphore is never closed");
    let path = file.path().to_owned();
    let checking = app.clone();
    let restore = move || -> Result<_, Problem> {
        // Moved into the work, which continues for a moment after the request was cancelled.
        let _held = (place, turn, reservation);
        let mut snapshot = Snapshot::open(file.path()).map_err(|error| bad_snapshot(error, &path))?;
        let spec = snapshot.header().spec.clone();
        check_spec(&checking, &spec)?;
        let mut items = snapshot.by_ref().map(|item| cancel::check().map_err(Error::from).and(item));
        let outcome = store.create_with(&name, spec, &mut items, existing);
        if let Err(Error::Cancelled(_)) = outcome {
            tracing::info!(collection = %name, "a restore was cancelled: its client has disconnected");
        }
        outcome.map_err(|error| bad_snapshot(error, &path))
    };
    let collection = app.transfers.threads.run(restore).await??;
    Ok(Created(info(&app, collection).await?))
}

/// Refuses a snapshot of patches that this server could not compare with. The bounds of a model that is not served are checked when it is.
fn check_spec(app: &App, spec: &Spec) -> Result<(), Problem> {
    let Some(options) = spec.patches() else { return Ok(()) };
    let served = app.registry.all().iter().find(|served| served.fingerprint() == spec.model.fingerprint).cloned();
    let checked = served.as_ref().map_or(Ok(()), |served| patch_bounds::check_dim(spec.dim, served));
    checked
        .and_then(|()| patch_bounds::check_memory(options, spec.dim, served.as_deref(), app.segment_size))
        .map_err(|problem| Problem::new(Code::BadSnapshot, format!("the snapshot: {}", problem.detail)))
}

fn check_length(headers: &HeaderMap, most: u64) -> Result<(), Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > most) { Err(too_large(most)) } else { Ok(()) }
}

fn too_large(most: u64) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the snapshot is over this server's limit of {most} bytes (--max-snapshot)"))
}

/// There is no room for what arrives: a mistake of its size is one of the body, not of an answer.
fn no_room(full: BudgetExceeded) -> Problem {
    let BudgetExceeded::TooLarge { most, .. } = full else { return full.into() };
    let detail = format!(
        "the snapshot takes more than the {most} bytes that it may (--scratch-space): raise it, or use `dino-server restore` beside a stopped server"
    );
    Problem::new(Code::BodyTooLarge, detail)
}

/// Writes a body to a file as it arrives. The whole may take long, but a body that stops or is too slow is refused.
async fn receive(app: &App, store: &Arc<dyn Store>, body: Body) -> Result<(NamedTempFile, Reservation), Problem> {
    let mut chunks = body.into_data_stream();
    let idle = app.limits.body.time;
    // Waiting for the sender, without the time that this server's disk takes.
    let mut waited = Duration::ZERO;
    let store = store.clone();
    let mut file = app.disk.run(move || store.scratch()).await??;
    let mut received = 0;
    let mut reservation = app.scratch.reserve(request_context::key());
    loop {
        let begun = Instant::now();
        let next = timeout(idle, chunks.next()).await;
        waited += begun.elapsed();
        let next = next.map_err(|_| {
            let seconds = idle.as_secs_f64();
            Problem::new(Code::BodyTimeout, format!("no part of the snapshot arrived for {seconds} s (--read-timeout)"))
        })?;
        let Some(chunk) = next else { return Ok((file, reservation)) };
        let chunk = chunk.map_err(|error| Problem::new(Code::BadBody, format!("the body broke off: {error}")))?;
        received += chunk.len() as u64;
        if received > app.max_snapshot {
            return Err(too_large(app.max_snapshot));
        }
        reservation.reach(received).map_err(no_room)?;
        if waited.as_secs_f64() > idle.as_secs_f64() + received as f64 / SLOWEST {
            let detail = format!(
                "the snapshot arrives at less than {} KiB a second: send it over a faster line, or restore it with `dino-server restore`",
                SLOWEST / 1024.0
            );
            return Err(Problem::new(Code::BodyTimeout, detail));
        }
        file = app
            .disk
            .run(move || {
                file.write_all(&chunk)?;
                Ok::<_, std::io::Error>(file)
            })
            .await?
            .map_err(Error::Io)?;
    }
}

/// What is wrong with a file that a client sent is the client's mistake, and its path is none of its business.
fn bad_snapshot(error: Error, snapshot: &Path) -> Problem {
    match error {
        Error::Damaged { path, detail } | Error::Unsupported { path, detail } if path == snapshot => {
            Problem::new(Code::BadSnapshot, format!("the snapshot: {detail}"))
        }
        error => error.into(),
    }
}
