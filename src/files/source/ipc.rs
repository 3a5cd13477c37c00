//! Record batches of Arrow's IPC format, from files and streams.

use std::cell::Cell;
use std::io::{Read, Seek as _, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::root_as_message;
use arrow_schema::{ArrowError, SchemaRef};
use fs_err::File;

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
/// How files begin and end; streams have neither.
const MAGIC: &[u8; 6] = b"ARROW1";
/// Most bytes that the buffers of a record batch may have together when they are no longer compressed.
const LARGEST: u64 = 4 << 30;
/// Longest message that is looked at, without its body: schemas of many thousand columns are shorter.
const LONGEST_MESSAGE: u32 = 16 << 20;
/// Most bytes before the first message.
const HEAD: u64 = 64;

/// Opens a file of record batches: a stream, or a stream between a magic number and an index.
pub(super) fn open(path: &Path) -> Result<Stream<std::io::Take<File>>, ArrowError> {
    let mut file = File::open(path)?;
    let mut len = file.metadata()?.len();
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head)?;
    let mut start = 0;
    if head.starts_with(MAGIC) && len >= 18 {
        let mut tail = [0; 10];
        file.seek(SeekFrom::End(-10))?;
        file.read_exact(&mut tail)?;
        let index = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        // Zeros fill up to 8 or 64 bytes, and the first message begins with something else.
        let filled = head.chunks(8).skip(1).take_while(|bytes| bytes.iter().all(|&byte| byte == 0)).count();
        start = 8 * (1 + filled as u64);
        len = len.saturating_sub(index + 10);
        if tail[4..] != *MAGIC || len < start {
            return Err(ArrowError::IpcError("it is cut: the magic number at its end is missing".to_owned()));
        }
    }
    check_lengths(&mut file, start, len)?;
    file.seek(SeekFrom::Start(start))?;
    Ok(Stream::new(file.take(len - start)))
}

/// Refuses compressed buffers that are said to become longer than any record batch here: the Arrow library makes room for what a file says. What
/// else is wrong with the messages, the decoder finds.
fn check_lengths(file: &mut File, start: u64, end: u64) -> Result<(), ArrowError> {
    let mut at = start;
    while let Some((message, body)) = message_at(file, at, end) {
        let Ok(message) = root_as_message(&message) else { return Ok(()) };
        let dictionary = || message.header_as_dictionary_batch()?.data();
        let batch = message.header_as_record_batch().or_else(dictionary).filter(|batch| batch.compression().is_some());
        let mut total = 0_u64;
        for buffer in batch.and_then(|batch| batch.buffers()).into_iter().flatten().filter(|buffer| buffer.length() >= 8) {
            let place = u64::try_from(buffer.offset()).ok().and_then(|offset| body.checked_add(offset));
            let Some(declared) = place.and_then(|place| bytes_at::<8>(file, place)).map(i64::from_le_bytes) else { return Ok(()) };
            // -1 says that it is not compressed; other negative numbers say nothing.
            if declared != -1 {
                total = total.saturating_add(u64::try_from(declared).unwrap_or(u64::MAX));
            }
            if total > LARGEST {
                let reason = format!("a record batch of more than {LARGEST} bytes, as one of it says it is, is not read");
                return Err(ArrowError::IpcError(reason));
            }
        }
        let next = u64::try_from(message.bodyLength()).ok().and_then(|length| body.checked_add(length));
        let Some(next) = next else { return Ok(()) };
        at = next;
    }
    Ok(())
}

/// The message that begins at a place, and where its body does; none at the end, and where it is damaged.
fn message_at(file: &mut File, at: u64, end: u64) -> Option<(Vec<u8>, u64)> {
    let first = u32::from_le_bytes(bytes_at(file, at)?);
    // Streams of old versions have no mark before the length.
    let (head, length) = if first == u32::MAX { (8, u32::from_le_bytes(bytes_at(file, at + 4)?)) } else { (4, first) };
    let body = at.checked_add(head + u64::from(length)).filter(|&body| body <= end)?;
    if length == 0 || length > LONGEST_MESSAGE {
        return None;
    }
    file.seek(SeekFrom::Start(at + head)).ok()?;
    let mut message = vec![0; length as usize];
    file.read_exact(&mut message).ok()?;
    Some((message, body))
}

fn bytes_at<const N: usize>(file: &mut File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// The record batches that a reader gives.
pub(super) struct Stream<R> {
    source: R,
    decoder: StreamDecoder,
    buffer: Buffer,
    has_ended: bool,
}

impl<R: Read> Stream<R> {
    /// Begins to read.
    pub(super) fn new(source: R) -> Self {
        Self { source, decoder: StreamDecoder::new(), buffer: Buffer::from(&[]), has_ended: false }
    }

    /// The schema, once the first record batch was asked for.
    pub(super) fn schema(&self) -> Option<SchemaRef> {
        self.decoder.schema()
    }

    fn read(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            if self.buffer.is_empty() {
                let mut bytes = Vec::new();
                self.source.by_ref().take(CHUNK).read_to_end(&mut bytes)?;
                if bytes.is_empty() {
                    self.decoder.finish()?;
                    return Ok(None);
                }
                self.buffer = bytes.into();
            }
            let decoded = without_panic(|| self.decoder.decode(&mut self.buffer));
            let decoded = decoded.unwrap_or_else(|| Err(ArrowError::IpcError("a message says that it is longer than it is".to_owned())));
            if let Some(batch) = decoded? {
                return Ok(Some(batch));
            }
        }
    }
}

impl<R: Read> Iterator for Stream<R> {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        let batch = self.read();
        self.has_ended = !matches!(batch, Ok(Some(_)));
        batch.transpose()
    }
}

/// Runs code of the Arrow library, which checks the lengths in a message by assertions: `None` where one of them fails. The stream is not read
/// further then.
fn without_panic<T>(run: impl FnOnce() -> T) -> Option<T> {
    thread_local! {
        static IS_QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                usual(info);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IS_QUIET.set(false);
    result.ok()
}
