//! `embed --arrow -`: streams of record batches through the program, as a pipe, Ray or Spark send them.

use std::fmt::Write as _;
use std::io::{BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int8Type, Int32Type};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BinaryViewArray, DictionaryArray, Int32Array, LargeBinaryArray, RecordBatch, StringArray,
    StringViewArray, StructArray,
};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Field, Schema};

use super::common::{model, program, text};
use super::sources::{Rows, embedded, pictures};

/// Longest that a stream may take: after it, the program is ended, so that a test fails rather than waits.
const LONGEST: Duration = Duration::from_mins(2);

/// Record batches that are offered to a program whose answers are not read.
const ALL: usize = 20_000;

/// The program, fed by the test.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    has_ended: Arc<AtomicBool>,
}

impl Running {
    fn start(more: &[&str]) -> Self {
        let mut command = program();
        command.args(["embed", "--arrow", "-", "--sessions", "2"]).args(more).arg("--model").arg(model());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let has_ended = Arc::new(AtomicBool::new(false));
        let (id, flag) = (child.id().to_string(), Arc::clone(&has_ended));
        thread::spawn(move || {
            thread::sleep(LONGEST);
            if !flag.load(Ordering::SeqCst) {
                Command::new("kill").args(["-9", &id]).status().unwrap();
            }
        });
        Self { stdin: child.stdin.take(), stdout: child.stdout.take(), child, has_ended }
    }

    /// Exit code, and what is on stderr.
    fn end(mut self) -> (Option<i32>, String) {
        drop((self.stdin.take(), self.stdout.take()));
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        self.has_ended.store(true, Ordering::SeqCst);
        (self.child.wait().unwrap().code(), said)
    }
}

/// Exit code, stdout and stderr.
struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    said: String,
}

/// What the program makes of these bytes.
fn run(input: &[u8], more: &[&str]) -> Ended {
    let mut running = Running::start(more);
    let (mut stdin, input) = (running.stdin.take().unwrap(), input.to_vec());
    // A program that refuses the stream does not read it to its end.
    let sender = thread::spawn(move || drop(stdin.write_all(&input)));
    let mut stdout = Vec::new();
    running.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    let (code, said) = running.end();
    sender.join().unwrap();
    Ended { code, stdout, said }
}

fn stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The record batches of an answer, which has to be a whole stream.
fn answers(output: &Ended) -> Vec<RecordBatch> {
    assert_eq!(output.code, Some(0), "{}", output.said);
    assert!(output.stdout.ends_with(&[255, 255, 255, 255, 0, 0, 0, 0]), "the stream has its end");
    StreamReader::try_new(&output.stdout[..], None).unwrap().map(Result::unwrap).collect()
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, column)| column).collect()).unwrap()
}

fn names(files: &[(String, Vec<u8>)]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(files.iter().map(|(name, _)| name)))
}

fn images(files: &[(String, Vec<u8>)]) -> ArrayRef {
    Arc::new(BinaryArray::from_iter_values(files.iter().map(|(_, bytes)| bytes)))
}

/// The vector and the error of each row.
fn rows(batch: &RecordBatch) -> Vec<(Option<Vec<f32>>, Option<&str>)> {
    let vectors = batch["embedding"].as_fixed_size_list();
    let vector = |row: usize| vectors.is_valid(row).then(|| vectors.value(row).as_primitive::<Float32Type>().values().to_vec());
    batch["error"].as_string::<i32>().iter().enumerate().map(|(row, error)| (vector(row), error)).collect()
}

/// Pictures, and their vectors as `embed --images` makes them.
fn wanted(folder: &Path, count: usize) -> (Vec<(String, Vec<u8>)>, Rows) {
    let (images, files) = pictures(folder, count);
    let (rows, _) = embedded(folder, images.to_str().unwrap(), &[], b"");
    (files, rows)
}

#[test]
fn rows_of_every_type_come_back_with_the_vectors_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (files, wanted) = wanted(folder.path(), 9);
    let bytes = || files.iter().map(|(_, bytes)| bytes.as_slice());
    let binary: ArrayRef = Arc::new(BinaryArray::from_iter_values(bytes()));
    let field = |name: &str, kind: DataType| Arc::new(Field::new(name, kind, true));
    let with_path = vec![(field("bytes", DataType::Binary), Arc::clone(&binary)), (field("path", DataType::Utf8), names(&files))];
    let keys = Int32Array::from_iter_values((0..9).rev());
    let reversed: ArrayRef = Arc::new(BinaryArray::from_iter_values(bytes().rev()));
    let columns: [ArrayRef; 5] = [
        binary,
        Arc::new(LargeBinaryArray::from_iter_values(bytes())),
        Arc::new(BinaryViewArray::from_iter_values(bytes())),
        Arc::new(DictionaryArray::<Int32Type>::new(keys, reversed)),
        Arc::new(StructArray::from(with_path)),
    ];
    for column in columns {
        let labels: DictionaryArray<Int8Type> = (0..9).map(|row| ["a", "b"][row % 2]).collect();
        let sent = batch(vec![("kind", Arc::new(labels)), ("image", column), ("name", names(&files))]);
        let schema = sent.schema().as_ref().clone().with_metadata([("of the caller".to_owned(), "stays".to_owned())]);
        let sent = sent.with_schema(Arc::new(schema)).unwrap();
        let output = run(&stream(&[sent.slice(0, 4), sent.slice(4, 0), sent.slice(4, 5)]), &[]);
        let found = answers(&output);
        let kind = sent.column(1).data_type();
        assert_eq!(found.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [4, 0, 5], "{kind}");
        let schema = found[0].schema();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(columns, ["kind", "name", "embedding", "error"], "{kind}");
        assert_eq!(schema.metadata()["of the caller"], "stays");
        let header: serde_json::Value = serde_json::from_str(&schema.metadata()["dino"]).unwrap();
        assert_eq!((&header["dim"], &header["normalize"], &header["pooling"]), (&32.into(), &true.into(), &"cls".into()));
        let mut row = 0;
        for answer in &found {
            for (vector, error) in rows(answer) {
                let name = &files[row].0;
                assert_eq!((vector.as_ref(), error), (Some(&wanted[name].1), None), "{kind}: {name}");
                row += 1;
            }
        }
        for (at, name) in [(0, "kind"), (2, "name")] {
            let whole = arrow_cast::cast(sent.column(at), &DataType::Utf8).unwrap();
            let parts: Vec<_> = found.iter().map(|answer| arrow_cast::cast(&answer[name], &DataType::Utf8).unwrap()).collect();
            let parts: Vec<_> = parts.iter().flat_map(|part| part.as_string::<i32>().iter()).collect();
            assert_eq!(parts, whole.as_string::<i32>().iter().collect::<Vec<_>>());
        }
        assert!(output.said.contains("answered 9 rows, 0 of them with an error"), "{}", output.said);
    }
}

#[test]
fn what_is_no_picture_has_no_vector_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (files, wanted) = wanted(folder.path(), 3);
    let whole = &files[2].1;
    let cells = [Some(&files[0].1[..]), None, Some(b"no picture"), Some(&whole[..whole.len() / 2]), Some(b""), Some(whole)];
    let sent = batch(vec![("bytes", Arc::new(BinaryArray::from_iter(cells))), ("number", Arc::new(Int32Array::from_iter_values(0..6)))]);
    for (flags, column) in [(&[][..], "embedding"), (&["--dtype", "int8"], "scales"), (&["--pooling", "patches"], "embedding")] {
        let output = run(&stream(from_ref(&sent)), flags);
        let found = answers(&output);
        let (answer, errors) = (&found[0], found[0]["error"].as_string::<i32>());
        assert_eq!(answer["number"].as_ref(), sent["number"].as_ref());
        for row in 0..6 {
            let is_good = [0, 5].contains(&row);
            assert_eq!((answer[column].is_null(row), errors.is_null(row)), (!is_good, is_good), "{flags:?} {row}");
        }
        assert_eq!(errors.value(1), "it has no bytes");
        assert!([2, 3, 4].iter().all(|&row| !errors.value(row).is_empty()));
        assert!(output.said.contains("answered 6 rows, 4 of them with an error"), "{}", output.said);
        if flags.is_empty() {
            let rows = rows(answer);
            assert_eq!([&rows[0].0, &rows[5].0], [&Some(wanted[&files[0].0].1.clone()), &Some(wanted[&files[2].0].1.clone())]);
        }
    }
}

/// Of 600 rows, a unit has no more than 256.
#[test]
fn large_record_batches_are_answered_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (files, wanted) = wanted(folder.path(), 6);
    let pictures = (0..600).map(|row| files[row % 6].1.as_slice());
    let labels = (0..600).map(|row| format!("a label that is longer than twelve bytes, of row {row}"));
    let sent = batch(vec![
        ("image", Arc::new(BinaryViewArray::from_iter_values(pictures))),
        ("label", Arc::new(StringViewArray::from_iter_values(labels.clone()))),
    ]);
    let found = answers(&run(&stream(&[sent]), &[]));
    assert_eq!(found.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [256, 256, 88]);
    let of_all: Vec<&str> = found.iter().flat_map(|answer| answer["label"].as_string_view().iter().flatten()).collect();
    assert_eq!(of_all, labels.collect::<Vec<_>>());
    // A part does not have the strings of the others.
    let bytes: usize = found[2]["label"].as_string_view().data_buffers().iter().map(Buffer::len).sum();
    assert!(bytes < 88 * 64, "{bytes}");
    let vectors: Vec<_> = found.iter().flat_map(rows).map(|(vector, _)| vector.unwrap()).collect();
    for (row, vector) in vectors.into_iter().enumerate() {
        assert_eq!(vector, wanted[&files[row % 6].0].1, "{row}");
    }
}

/// A caller that sends the next record batch when it has the answer to the last one.
#[test]
fn answers_do_not_wait_for_more_input() {
    let folder = tempfile::tempdir().unwrap();
    let (files, wanted) = wanted(folder.path(), 4);
    let sent = batch(vec![("image", images(&files)), ("name", names(&files))]);
    let mut running = Running::start(&[]);
    let mut writer = StreamWriter::try_new(running.stdin.take().unwrap(), &sent.schema()).unwrap();
    // The schema is answered before there is a record batch.
    let mut reader = StreamReader::try_new(BufReader::new(running.stdout.take().unwrap()), None).unwrap();
    assert_eq!(reader.schema().field(0).name(), "name");
    for (start, count) in [(0, 1), (1, 0), (1, 2), (3, 0), (3, 1)] {
        writer.write(&sent.slice(start, count)).unwrap();
        let answer = reader.next().unwrap().unwrap();
        let vectors: Vec<_> = rows(&answer).into_iter().map(|(vector, _)| vector.unwrap()).collect();
        let wanted: Vec<_> = files[start..start + count].iter().map(|(name, _)| wanted[name].1.clone()).collect();
        assert_eq!(vectors, wanted);
    }
    writer.finish().unwrap();
    assert!(reader.next().is_none());
    // Its stdin is still open.
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("answered 4 rows"), "{said}");
    drop(writer);
}

#[test]
fn who_does_not_read_answers_has_to_wait_and_may_leave() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 2);
    let sent = batch(vec![("image", images(&files)), ("name", names(&files))]).slice(0, 1);
    let mut running = Running::start(&[]);
    let mut writer = StreamWriter::try_new(running.stdin.take().unwrap(), &sent.schema()).unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let sender = thread::spawn(move || {
        (0..ALL).take_while(|_| writer.write(&sent).map(|()| counter.fetch_add(1, Ordering::SeqCst)).is_ok()).count()
    });
    // Until nothing more is taken.
    let mut last = usize::MAX;
    while last == 0 || last != written.load(Ordering::SeqCst) {
        last = written.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(700));
    }
    assert!((1..ALL / 2).contains(&last), "{last} of {ALL} record batches were taken without a reader");
    // One who reads gets what was sent; then the reader leaves.
    let mut reader = StreamReader::try_new(BufReader::new(running.stdout.take().unwrap()), None).unwrap();
    for _ in 0..50 {
        assert_eq!(reader.next().unwrap().unwrap().num_rows(), 1);
    }
    drop(reader);
    let (code, said) = running.end();
    assert_eq!((code, said.as_str()), (Some(0), ""), "it ends without a word");
    assert!(sender.join().unwrap() < ALL, "the program no longer reads");
}

/// Columns that are passed on take memory as pictures do: 16 of these record batches are as much as may be on its way.
#[test]
fn large_columns_beside_small_pictures_have_to_wait_too() {
    const BATCHES: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 2);
    let sent = batch(vec![("image", images(&files[..1])), ("text", Arc::new(StringArray::from(vec!["x".repeat(16 << 20)])))]);
    let mut running = Running::start(&[]);
    let mut writer = StreamWriter::try_new(running.stdin.take().unwrap(), &sent.schema()).unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let sender = thread::spawn(move || {
        (0..BATCHES).take_while(|_| writer.write(&sent).map(|()| counter.fetch_add(1, Ordering::SeqCst)).is_ok()).count()
    });
    // Until nothing more is taken.
    let mut last = usize::MAX;
    while last == 0 || last != written.load(Ordering::SeqCst) {
        last = written.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(700));
    }
    assert!(last <= 20, "{last} record batches were taken without a reader");
    drop(running.stdout.take());
    let (code, said) = running.end();
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(sender.join().unwrap() < BATCHES);
}

#[test]
fn streams_that_cannot_be_answered_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (files, wanted) = wanted(folder.path(), 3);
    let (names, images) = (names(&files), images(&files));
    let of = |columns: &[(&'static str, &ArrayRef)]| batch(columns.iter().map(|(name, column)| (*name, Arc::clone(column))).collect());
    let good = of(&[("image", &images), ("name", &names)]);
    let refused = |input: &[u8], flags: &[&str], word: &str| {
        let Ended { code, stdout, said } = run(input, flags);
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(word), "{word:?} in {said}");
        stdout
    };
    let nothing = |input: &[u8], flags: &[&str], word: &str| assert!(refused(input, flags, word).is_empty(), "{word}");
    nothing(b"", &[], "the stream on stdin: it is no Arrow file or stream");
    nothing(b"tests/photos/china.jpg\n", &[], "the stream on stdin: it is no Arrow");
    nothing(&stream(&[of(&[("name", &names)])]), &[], "no column is known to hold pictures: name one with --image-column; it has name");
    nothing(&stream(&[of(&[("a", &images), ("b", &images)])]), &[], "it has a, b");
    let flag = ["--image-column", "picture"];
    nothing(&stream(from_ref(&good)), &flag, "the stream on stdin: it has no column picture (--image-column); it has image, name");
    nothing(&stream(from_ref(&good)), &["--image-column", "name"], "its column name is of type Utf8, and has to be of bytes");
    for taken in ["embedding", "error"] {
        nothing(&stream(&[of(&[("image", &images), (taken, &names)])]), &[], &format!("its column {taken} would be in the answers twice"));
    }
    nothing(&stream(&[of(&[("image", &names), ("name", &names), ("image", &images)])]), &[], "it has more than one column image");
    let file = {
        let mut writer = FileWriter::try_new(Vec::new(), &good.schema()).unwrap();
        writer.write(&good).unwrap();
        writer.into_inner().unwrap()
    };
    nothing(&file, &[], "it is an Arrow file, and has to be an Arrow stream");

    // What comes before damage is answered, without the mark of the end.
    let whole = stream(&[good.clone(), good.clone()]);
    let answered = refused(&whole[..whole.len() - 40], &[], "the stream on stdin: it is cut in the middle of a message");
    assert!(!answered.ends_with(&[255, 255, 255, 255, 0, 0, 0, 0]));
    let found: Vec<RecordBatch> = StreamReader::try_new(&answered[..], None).unwrap().map_while(Result::ok).collect();
    assert_eq!(rows(&found[0])[1].0.as_ref(), Some(&wanted[&files[1].0].1));
    assert_eq!(found.len(), 1);

    // So is all that comes before an end without a mark, as of a writer that was killed between two record batches.
    let answered = refused(&whole[..whole.len() - 8], &[], "the stream on stdin: it ends without its end mark");
    assert!(!answered.ends_with(&[255, 255, 255, 255, 0, 0, 0, 0]));
    let found: Vec<RecordBatch> = StreamReader::try_new(&answered[..], None).unwrap().map(Result::unwrap).collect();
    assert_eq!(found.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [3, 3]);

    // A compressed buffer that says that it becomes 2^45 bytes.
    let options = IpcWriteOptions::default().try_with_compression(Some(arrow_ipc::CompressionType::ZSTD)).unwrap();
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &good.schema(), options).unwrap();
    writer.write(&good).unwrap();
    let mut bytes = writer.into_inner().unwrap();
    assert_eq!(answers(&run(&bytes, &[]))[0].num_rows(), 3, "as it was");
    let at = bytes.windows(4).position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]).unwrap() - 8;
    bytes[at..at + 8].copy_from_slice(&(1_i64 << 45).to_le_bytes());
    refused(&bytes, &[], "is not read");
    // A record batch that says that 2^61 bytes follow.
    let mut bytes = whole;
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let head = 8 + word(&bytes, 4) + 8;
    let head = head..head + word(&bytes, head - 4);
    let length = arrow_ipc::root_as_message(&bytes[head.clone()]).unwrap().bodyLength().to_le_bytes();
    let at = head.start + bytes[head].windows(8).position(|eight| eight == length).unwrap();
    bytes[at..at + 8].copy_from_slice(&(1_i64 << 61).to_le_bytes());
    refused(&bytes, &[], "is not read");

    for flags in [
        &["--arrow", "x"][..],
        &["--arrow", "-", "--images", "x"],
        &["--arrow", "-", "--out", "x.npy"],
        &["--arrow", "-", "--shard", "0/2"],
        &[],
    ] {
        let output = program().arg("embed").args(flags).arg("--model").arg(model()).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {}", text(&output.stderr));
    }
}

/// Whatever is changed in a stream, the program says so or answers it, and does not panic.
#[test]
fn changed_bytes_of_streams_are_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 2);
    let keys = Int32Array::from_iter_values([0, 1]);
    let views = BinaryViewArray::from_iter_values(files.iter().map(|(_, bytes)| bytes));
    let sent = batch(vec![
        ("image", Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(views)))),
        ("name", Arc::new(StringViewArray::from_iter_values(files.iter().map(|(name, _)| name)))),
    ]);
    let whole = stream(&[sent.clone(), sent]);
    // Between the messages are the bytes of pictures, in which a change is no damage of the stream.
    let pictures: Vec<_> = files.iter().map(|(_, bytes)| whole.windows(bytes.len()).position(|part| part == bytes).unwrap()).collect();
    let is_picture = |at: usize| pictures.iter().zip(&files).any(|(&start, (_, bytes))| (start..start + bytes.len()).contains(&at));
    let places: Vec<usize> = (0..whole.len()).filter(|&at| !is_picture(at)).collect();
    let mut state = 11_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut codes = String::new();
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..=random() % 3 {
            bytes[places[random() % places.len()]] = random() as u8;
        }
        let Ended { code, said, .. } = run(&bytes, &[]);
        assert!(matches!(code, Some(0 | 1)) && !said.contains("panicked"), "{code:?}: {said}");
        write!(codes, "{}", code.unwrap()).unwrap();
    }
    assert!(codes.contains('0') && codes.contains('1'), "{codes}");
}
