//! `POST …/snapshot` and `POST …/restore`: a collection as one file, out and in.

use std::io::Write;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use schemars::JsonSchema;
use serde::Deserialize;
use tempfile::NamedTempFile;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use super::{
    super::{
        App,
        body::discard,
        problem::{Code, Problem},
        submission::from_query,
    },
    Name, find, info, store,
};
use crate::index::{CollectionName, Error, OnExisting, Store, snapshot};

/// One file with everything in it, as of this moment.
pub(super) async fn snapshot(State(app): State<App>, name: Name) -> Result<Response, Problem> {
    let collection = find(&app, &name?).await?;
    let store = store(&app, collection.name())?.clone();
    // By way of a file: a client that reads slowly would keep old pages of the database in use.
    let write = {
        let collection = collection.clone();
        move || -> Result<std::fs::File, Error> {
            let mut file = store.scratch()?;
            snapshot::write(&*collection, std::io::BufWriter::new(file.as_file_mut()))?;
            // What is open can be read after its name is gone, and never stays behind.
            Ok(file.reopen()?)
        }
    };
    let file = app.disk.run(write).await??;
    let length = file.metadata().map_err(Error::Io)?.len();
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}.dino\"", collection.name())),
    ];
    let body = Body::from_stream(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 1 << 18));
    Ok((headers, body).into_response())
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct Options {
    /// Delete the collection that is there, in the same step.
    replace: bool,
}

/// Makes a collection of a snapshot, all of it or nothing.
pub(super) async fn restore(State(app): State<App>, name: Name, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let checked = || -> Result<_, Problem> {
        let name: CollectionName = name?.parse()?;
        let store = store(&app, &name)?.clone();
        let options: Options = from_query(&parts.uri)?;
        check_length(&parts.headers, app.max_snapshot)?;
        // A snapshot is read into memory as a whole: one at a time.
        let turn =
            app.restoring.try_lock().map_err(|_| Problem::new(Code::QueueFull, "another snapshot is being restored: try again later"))?;
        Ok((name, store, options, turn))
    };
    let (name, store, options, turn) = match checked() {
        Ok(checked) => checked,
        Err(problem) => {
            discard(&parts.headers, body).await;
            return Err(problem);
        }
    };
    let file = receive(&app, &*store, body).await?;
    let existing = if options.replace { OnExisting::Replace } else { OnExisting::Refuse };
    let restore = move || -> Result<_, Problem> {
        let (header, items) = snapshot::read(file.path()).map_err(bad_snapshot)?;
        Ok(store.create_with(&name, header.spec, items, existing)?)
    };
    let collection = app.disk.run(restore).await??;
    drop(turn);
    Ok((StatusCode::CREATED, Json(info(&app, collection).await?)).into_response())
}

fn check_length(headers: &HeaderMap, most: u64) -> Result<(), Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > most) { Err(too_large(most)) } else { Ok(()) }
}

fn too_large(most: u64) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the snapshot is over this server's limit of {most} bytes (--max-snapshot)"))
}

/// Writes a body to a file as it arrives. It may take its time as a whole, but not stand still.
async fn receive(app: &App, store: &dyn Store, body: Body) -> Result<NamedTempFile, Problem> {
    let idle = app.limits.body.time;
    let mut file = store.scratch()?;
    let mut left = app.max_snapshot;
    let mut chunks = body.into_data_stream();
    loop {
        let next = timeout(idle, chunks.next()).await;
        let next = next.map_err(|_| {
            let seconds = idle.as_secs_f64();
            Problem::new(Code::BodyTimeout, format!("no part of the snapshot arrived for {seconds} s (--read-timeout)"))
        })?;
        let Some(chunk) = next else { return Ok(file) };
        let chunk = chunk.map_err(|error| Problem::new(Code::BadBody, format!("the body broke off: {error}")))?;
        left = left.checked_sub(chunk.len() as u64).ok_or_else(|| too_large(app.max_snapshot))?;
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
fn bad_snapshot(error: Error) -> Problem {
    match error {
        Error::Damaged { detail, .. } | Error::Unsupported { detail, .. } => {
            Problem::new(Code::BadSnapshot, format!("the snapshot: {detail}"))
        }
        error => error.into(),
    }
}
