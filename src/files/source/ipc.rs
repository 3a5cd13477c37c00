//! Record batches of Arrow's IPC format, from files and streams.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{Read, Seek as _, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::{Arc, Once};

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::reader::{read_dictionary, read_record_batch};
use arrow_ipc::{Message, MessageHeader, root_as_message};
use arrow_schema::{ArrowError, SchemaRef};
use fs_err::File;

use super::memory;

/// How files begin and end; streams have neither.
const MAGIC: &[u8; 6] = b"ARROW1";
/// Most bytes that a message may have behind its head, that its buffers may have together when they are no longer compressed, and that all
/// dictionaries may have together.
const LARGEST: u64 = 4 << 30;
/// Longest head of a message that is looked at: schemas of many thousand columns are shorter.
const LONGEST_HEAD: u32 = 16 << 20;
/// Most memory that is set aside for what a message says that it is long; for more, its bytes have to arrive.
const TRUSTED: u64 = 64 << 20;
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
            return Err(wrong("it is cut: the magic number at its end is missing"));
        }
    }
    file.seek(SeekFrom::Start(start))?;
    Ok(Stream { is_file: true, ..Stream::new(file.take(len - start)) })
}

fn wrong(reason: impl Into<String>) -> ArrowError {
    ArrowError::IpcError(reason.into())
}

fn cut() -> ArrowError {
    wrong("it is cut in the middle of a message")
}

/// Bytes that the buffers of a message say that they have together when they are no longer compressed. More than `largest` are refused: the
/// Arrow library makes room for what a message says, and copies each buffer that is not aligned, also where several are the same bytes.
fn check_lengths(message: &Message<'_>, body: &[u8], largest: u64) -> Result<u64, ArrowError> {
    let dictionary = || message.header_as_dictionary_batch()?.data();
    let Some(batch) = message.header_as_record_batch().or_else(dictionary) else { return Ok(0) };
    let is_compressed = batch.compression().is_some();
    let mut total = 0_u64;
    for buffer in batch.buffers().into_iter().flatten() {
        // What is wrong with a length or an offset, the decoder finds.
        let length = u64::try_from(buffer.length()).unwrap_or(0);
        let begin = || usize::try_from(buffer.offset()).ok().and_then(|offset| body.get(offset..)?.first_chunk());
        let declared = if is_compressed && length >= 8 { begin().map(|bytes| i64::from_le_bytes(*bytes)) } else { None };
        total = total.saturating_add(match declared {
            // -1 says that it is not compressed; other negative numbers say nothing.
            None | Some(-1) => length,
            Some(declared) => u64::try_from(declared).unwrap_or(u64::MAX),
        });
        if total > largest {
            return Err(too_large(largest));
        }
    }
    Ok(total)
}

fn too_large(largest: u64) -> ArrowError {
    wrong(format!("a record batch of more than {largest} bytes, as one of it says it is, is not read"))
}

/// The record batches that a reader gives, each as soon as its last byte is there: nothing behind it is waited for.
pub(in crate::files) struct Stream<R> {
    source: R,
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
    /// Whether the source ends where the stream does.
    is_file: bool,
    has_ended: bool,
    /// Whether the mark of the end was read.
    has_end_mark: bool,
    /// [`LARGEST`], but in tests.
    largest: u64,
}

/// What a message is.
enum Content {
    Batch(RecordBatch),
    /// The schema or a dictionary.
    Other,
}

impl<R: Read> Stream<R> {
    /// Begins to read.
    pub(in crate::files) fn new(source: R) -> Self {
        Self { source, schema: None, dictionaries: HashMap::new(), is_file: false, has_ended: false, has_end_mark: false, largest: LARGEST }
    }

    /// Whether the mark of the end was read. Without it, a stream that ended between two messages may have been cut there.
    pub(in crate::files) fn has_end_mark(&self) -> bool {
        self.has_end_mark
    }

    /// The schema, which is the first message.
    pub(in crate::files) fn schema(&mut self) -> Result<SchemaRef, ArrowError> {
        if self.schema.is_none() {
            self.message()?;
        }
        self.schema.clone().ok_or_else(|| wrong("it is no Arrow file or stream"))
    }

    /// Reads a message; `None` at the end.
    fn message(&mut self) -> Result<Option<Content>, ArrowError> {
        let Some(length) = self.length()? else { return Ok(None) };
        let head = self.bytes(length.into())?;
        let message = root_as_message(&head).map_err(|_| wrong("it is no Arrow file or stream, or damaged: a message cannot be read"))?;
        let length = u64::try_from(message.bodyLength()).map_err(|_| wrong("a message says that it is shorter than nothing"))?;
        if length > self.largest {
            return Err(too_large(self.largest));
        }
        let body = Buffer::from_vec(self.bytes(length)?);
        let declared = check_lengths(&message, &body, self.largest)?;
        if let Some(dictionary) = message.header_as_dictionary_batch() {
            // One that is no addition takes the place of the last one.
            let stay = self.dictionaries.iter().filter(|(id, _)| dictionary.isDelta() || **id != dictionary.id());
            self.check_dictionaries(memory::bytes(stay.map(|(_, values)| values)).saturating_add(declared.max(length)))?;
        }
        let decoded = without_panic(|| self.decode(&message, &body));
        decoded.unwrap_or_else(|| Err(wrong("a message says that it is longer than it is"))).map(Some)
    }

    fn decode(&mut self, message: &Message<'_>, body: &Buffer) -> Result<Content, ArrowError> {
        let (kind, version) = (message.header_type(), message.version());
        let header = || wrong("a message lacks its header");
        if kind == MessageHeader::Schema {
            if self.schema.is_some() {
                return Err(wrong("it has a second schema"));
            }
            self.schema = Some(Arc::new(try_fb_to_schema(message.header_as_schema().ok_or_else(header)?)?));
            return Ok(Content::Other);
        }
        let schema = self.schema.as_ref().ok_or_else(|| wrong("it does not begin with a schema"))?;
        match kind {
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch().ok_or_else(header)?;
                read_record_batch(body, batch, Arc::clone(schema), &self.dictionaries, None, &version).map(Content::Batch)
            }
            MessageHeader::DictionaryBatch => {
                let batch = message.header_as_dictionary_batch().ok_or_else(header)?;
                read_dictionary(body, batch, schema, &mut self.dictionaries, &version)?;
                self.check_dictionaries(memory::bytes(self.dictionaries.values()))?;
                Ok(Content::Other)
            }
            MessageHeader::NONE => Ok(Content::Other),
            kind => Err(wrong(format!("it has a message of another kind ({kind:?})"))),
        }
    }

    fn check_dictionaries(&self, bytes: u64) -> Result<(), ArrowError> {
        let reason = || wrong(format!("dictionaries of more than {} bytes together are not read", self.largest));
        if bytes > self.largest { Err(reason()) } else { Ok(()) }
    }

    /// Length of the head of the next message; `None` at the end.
    fn length(&mut self) -> Result<Option<u32>, ArrowError> {
        let Some(mut length) = self.word()? else { return Ok(None) };
        // Streams of old versions have no mark before the length.
        if length == u32::MAX {
            length = self.word()?.ok_or_else(cut)?;
        }
        match length {
            0 if self.is_file && self.word()?.is_some() => Err(wrong("it goes on behind its end")),
            0 => {
                self.has_end_mark = true;
                Ok(None)
            }
            length if length.to_le_bytes() == MAGIC[..4] => Err(wrong("it is an Arrow file, and has to be an Arrow stream")),
            length if length > LONGEST_HEAD => Err(wrong("it is no Arrow file or stream, or damaged: a message would be too long")),
            length => Ok(Some(length)),
        }
    }

    fn word(&mut self) -> Result<Option<u32>, ArrowError> {
        let mut bytes = Vec::with_capacity(4);
        self.source.by_ref().take(4).read_to_end(&mut bytes)?;
        match bytes.first_chunk() {
            Some(bytes) => Ok(Some(u32::from_le_bytes(*bytes))),
            None if bytes.is_empty() => Ok(None),
            None => Err(cut()),
        }
    }

    /// So many bytes. Memory grows with those that have arrived.
    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, ArrowError> {
        let mut bytes = Vec::with_capacity(length.min(TRUSTED) as usize);
        self.source.by_ref().take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(cut()) }
    }

    fn read(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        loop {
            match self.message()? {
                Some(Content::Batch(batch)) => return Ok(Some(batch)),
                Some(Content::Other) => {}
                None if self.schema.is_none() => return Err(wrong("it is no Arrow file or stream")),
                None => return Ok(None),
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

#[cfg(test)]
mod tests {
    use arrow_array::types::Int32Type;
    use arrow_array::{DictionaryArray, Int32Array, Int64Array, StringArray};
    use arrow_ipc::writer::{DictionaryHandling, IpcWriteOptions, StreamWriter};
    use arrow_schema::{Field, Schema};

    use super::*;

    fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
        let fields: Vec<_> =
            columns.iter().enumerate().map(|(at, column)| Field::new(at.to_string(), column.data_type().clone(), true)).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn stream(batches: &[RecordBatch], handling: DictionaryHandling) -> Vec<u8> {
        let options = IpcWriteOptions::default().with_dictionary_handling(handling);
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batches[0].schema(), options).unwrap();
        for batch in batches {
            writer.write(batch).unwrap();
        }
        writer.into_inner().unwrap()
    }

    /// Number of record batches before the end or an error.
    fn read(bytes: &[u8], largest: u64) -> (usize, Option<String>) {
        let (mut count, mut error) = (0, None);
        for batch in (Stream { largest, ..Stream::new(bytes) }) {
            match batch {
                Ok(_) => count += 1,
                Err(reason) => error = Some(reason.to_string()),
            }
        }
        (count, error)
    }

    #[test]
    fn the_mark_of_the_end_is_noticed() {
        let whole = stream(&[batch(vec![Arc::new(Int64Array::from(vec![1, 2]))])], DictionaryHandling::Resend);
        for (bytes, wanted) in [(&whole[..], true), (&whole[..whole.len() - 8], false)] {
            let mut stream = Stream::new(bytes);
            assert_eq!((stream.by_ref().map(Result::unwrap).count(), stream.has_end_mark()), (1, wanted));
        }
    }

    #[test]
    fn dictionaries_are_bounded_together() {
        let values = |from: i32, to: i32| StringArray::from_iter_values((from..to).map(|value| format!("{value:0100}")));
        let of = |values: StringArray| -> ArrayRef {
            let keys = Int32Array::from_iter_values([0, 1]);
            Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(values)))
        };
        // Each has about 10 kB, and 40 kB may be there.
        let many = batch((0..8).map(|_| of(values(0, 100))).collect());
        let (count, error) = read(&stream(&[many], DictionaryHandling::Resend), 40_000);
        assert!(count == 0 && error.unwrap().contains("dictionaries of more than 40000 bytes"));
        let grows: Vec<_> = (1..=8).map(|part| batch(vec![of(values(0, 100 * part))])).collect();
        let (count, error) = read(&stream(&grows, DictionaryHandling::Delta), 40_000);
        assert!((1..4).contains(&count) && error.unwrap().contains("dictionaries of more than 40000 bytes"), "{count}");
        // New ones take the place of old ones.
        let replaced: Vec<_> = (0..8).map(|part| batch(vec![of(values(part, part + 100))])).collect();
        assert_eq!(read(&stream(&replaced, DictionaryHandling::Resend), 40_000), (8, None));
    }

    #[test]
    fn buffers_of_the_same_bytes_count_each() {
        let columns = (0..8).map(|_| Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef).collect();
        let mut bytes = stream(&[batch(columns)], DictionaryHandling::Resend);
        assert_eq!(read(&bytes, 10_000), (1, None));
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let start = 8 + word(&bytes, 4) + 8;
        let head = bytes[start..start + word(&bytes, start - 4)].to_vec();
        let message = root_as_message(&head).unwrap();
        let length = message.bodyLength();
        for buffer in message.header_as_record_batch().unwrap().buffers().unwrap().iter().filter(|buffer| buffer.length() == 800) {
            let pair = |offset: i64, length: i64| [offset.to_le_bytes(), length.to_le_bytes()].concat();
            let at = start + head.windows(16).position(|bytes| bytes == pair(buffer.offset(), 800)).unwrap();
            bytes[at..at + 16].copy_from_slice(&pair(4, length - 4));
        }
        let (count, error) = read(&bytes, 10_000);
        assert!(count == 0 && error.unwrap().contains("is not read"));
    }
}
