//! Record batches of Arrow with pictures in, the same rows with their vectors out: what `embed --arrow -` does for a pipe, Ray or Spark.
//!
//! The next rows are read while others are embedded, and only so many, so that a caller that does not read its answers has to wait. An
//! answer is written as soon as all of its rows are done. `pipeline` is the way of the rows, `answers` their form.
//!
//! ```no_run
//! use dino_server::files::stream;
//! # use dino_server::files::vectors::Header;
//! # fn example(header: &Header, embedder: &mut dino_vision::bulk::Embedder) -> Result<(), Box<dyn std::error::Error>> {
//! let summary = stream::embed(std::io::stdin(), std::fs::File::create("vectors.arrows")?, None, header, embedder)?;
//! eprintln!("{} of {} pictures cannot be read", summary.failed, summary.rows);
//! # Ok(())
//! # }
//! ```

mod answers;
mod compact;
mod pipeline;

use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arrow_ipc::writer::StreamWriter;
use arrow_schema::ArrowError;
use dino_vision::bulk::{self, Embedder};

use super::source::ipc::Stream;
use super::vectors::Header;
use answers::{Answers, Outcome, Unit};
use pipeline::{Limits, Next, Pipeline};

pub use answers::ERROR;

/// Most bytes of record batches on their way at once, where there are several units of them.
const BYTES: u64 = 256 << 20;

/// Why a stream is not answered to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read; the rows before the damage are answered.
    #[error("the stream on stdin: {0}")]
    Input(String),
    /// It has not the columns that it needs, or others that it must not have.
    #[error("{0}")]
    Schema(String),
    /// The answers cannot be written; of the kind `BrokenPipe`, they are not read any more.
    #[error("stdout: {0}")]
    Output(io::Error),
    /// The model fails, and will with every other picture.
    #[error(transparent)]
    Model(bulk::Error),
    /// An answer cannot be put together.
    #[error("{0}")]
    Answer(String),
    /// A thread ended.
    #[error("a thread that embeds pictures has ended: this is a fault of the program")]
    Lost,
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Rows that were answered.
    pub rows: usize,
    /// Those of them whose picture cannot be read.
    pub failed: usize,
    /// Time from the first record batch to the last answer.
    pub took: Duration,
    /// Share of that time, 0 to 1, that the sessions ran, on average over the sessions.
    pub busy: f64,
}

/// Answers a stream of record batches. `image_column` names the one with the pictures; without it, it is `image`, or the only one of bytes.
///
/// A thread that waits for input may outlive this, where it ends before the input does.
///
/// # Errors
/// See [`Error`]. A picture that cannot be read is none: its vector is null, and the column [`ERROR`] says why.
pub fn embed(
    input: impl Read + Send + 'static,
    output: impl Write,
    image_column: Option<&str>,
    header: &Header,
    embedder: &mut Embedder,
) -> Result<Summary, Error> {
    let mut stream = Stream::new(input);
    let schema = stream.schema().map_err(|error| Error::Input(reason(&error)))?;
    let answers = Arc::new(Answers::of(&schema, image_column, header)?);
    let mut writer = StreamWriter::try_new(BufWriter::new(output), &answers.schema).map_err(output_error)?;
    // A caller may wait for the schema before it sends a record batch.
    writer.flush().map_err(output_error)?;

    let limits = Limits { rows: 2 * answers.rows().max(embedder.workers()), bytes: BYTES };
    let pipeline = Arc::new(Pipeline::new(limits));
    let reader = EndOnDrop(Arc::clone(&pipeline));
    let form = Arc::clone(&answers);
    // Not awaited: it waits for input that may never come when answers are no longer read.
    thread::Builder::new()
        .name("arrow-input".to_owned())
        .spawn(move || reader.0.end(read(stream, &form, &reader.0)))
        .map_err(|error| Error::Answer(format!("no thread can be started: {error}")))?;

    let busy_before = embedder.busy().as_secs_f64();
    let work = |worker: &mut bulk::Worker<'_>| pipeline.work(|unit: &Unit, row| unit.embed(worker, row));
    let Written { rows, failed, last } = embedder.on_workers(work, || {
        let _guard = CancelOnDrop(&pipeline);
        write(&mut writer, &answers, &pipeline)
    })?;
    let took = pipeline.began().zip(last).map(|(began, last)| last - began).unwrap_or_default();
    let available = took.as_secs_f64() * embedder.sessions() as f64;
    let busy = (embedder.busy().as_secs_f64() - busy_before) / available.max(f64::MIN_POSITIVE);
    Ok(Summary { rows, failed, took, busy })
}

/// What is wrong with a stream that may be cut between two record batches.
const NO_END_MARK: &str = "it ends without its end mark, as it does where its writer is killed: rows may be missing";

/// Admits the rows of all record batches.
fn read(mut stream: Stream<impl Read>, answers: &Answers, pipeline: &Pipeline<Unit, Outcome>) -> Result<(), String> {
    for batch in stream.by_ref() {
        let batch = batch.map_err(|error| reason(&error))?;
        for unit in answers.units(&batch) {
            let unit = unit.map_err(|error| reason(&error))?;
            let (rows, bytes) = (unit.rows(), unit.bytes());
            if !pipeline.admit(unit, rows, bytes) {
                return Ok(());
            }
        }
    }
    if stream.has_end_mark() { Ok(()) } else { Err(NO_END_MARK.to_owned()) }
}

/// What was written.
#[derive(Default)]
struct Written {
    rows: usize,
    failed: usize,
    /// When the last answer was.
    last: Option<Instant>,
}

/// Writes all answers.
fn write(
    writer: &mut StreamWriter<BufWriter<impl Write>>,
    answers: &Answers,
    pipeline: &Pipeline<Unit, Outcome>,
) -> Result<Written, Error> {
    let mut written = Written::default();
    loop {
        match pipeline.next() {
            Next::Answer(mut answer) => {
                written.failed += answer.outcomes.iter().filter(|outcome| outcome.is_err()).count();
                let batch = answers.answer(&answer.unit, std::mem::take(&mut answer.outcomes))?;
                written.rows += batch.num_rows();
                writer.write(&batch).map_err(output_error)?;
                writer.flush().map_err(output_error)?;
                written.last = Some(Instant::now());
                pipeline.release(&answer);
            }
            Next::End(end) => {
                // Without the mark of the end, a reader sees that something is missing.
                end.map_err(Error::Input)?;
                return match writer.finish().map_err(output_error) {
                    // A caller that has every answer needs no mark.
                    Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(written),
                    Err(error) => Err(error),
                    Ok(()) => Ok(written),
                };
            }
            Next::Lost => return Err(Error::Lost),
        }
    }
}

/// What is wrong, without the kind that the Arrow library puts before it.
fn reason(error: &ArrowError) -> String {
    match error {
        ArrowError::IpcError(reason) | ArrowError::SchemaError(reason) | ArrowError::InvalidArgumentError(reason) => reason.clone(),
        error => error.to_string(),
    }
}

fn output_error(error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, error) => Error::Output(error),
        error => Error::Answer(error.to_string()),
    }
}

/// Says that the input has ended, also where the thread that reads it panics.
struct EndOnDrop(Arc<Pipeline<Unit, Outcome>>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(Err("the thread that reads it has ended: this is a fault of the program".to_owned()));
    }
}

/// Ends the workers when nothing is written any more.
struct CancelOnDrop<'a>(&'a Pipeline<Unit, Outcome>);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
