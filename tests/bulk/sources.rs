//! Where pictures come from: every source gives the same vectors, has stable ids, can be divided, and is not stopped by damage.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, BinaryArray, Int64Array, LargeBinaryArray, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;

use super::common::{many_pictures, model, photo, program, run, text};

/// Ids with label and vector.
pub(crate) type Rows = BTreeMap<String, (Option<String>, Vec<f32>)>;

fn embed(images: &str, out: &Path, more: &[&str], stdin: &[u8]) -> Output {
    let mut command = program();
    command.args(["embed", "--images", images]).args(more).arg("--out").arg(out).arg("--model").arg(model());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

pub(crate) fn rows_of(out: &Path) -> Rows {
    rows_of_batches(ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(out).unwrap()).unwrap())
}

pub(crate) fn rows_of_batches<T: ChunkReader + 'static>(builder: ParquetRecordBatchReaderBuilder<T>) -> Rows {
    let mut rows = Rows::new();
    for batch in builder.build().unwrap().map(Result::unwrap) {
        let vectors = batch["embedding"].as_fixed_size_list().values().as_primitive::<Float32Type>().values().to_vec();
        let labels = batch["label"].as_string::<i32>().iter().map(|label| label.map(str::to_owned));
        for ((id, label), vector) in batch["path"].as_string::<i32>().iter().zip(labels).zip(vectors.chunks_exact(32)) {
            assert!(rows.insert(id.unwrap().to_owned(), (label, vector.to_vec())).is_none(), "{id:?} twice");
        }
    }
    rows
}

/// Rows and what is said on stderr, of a run that has to succeed.
pub(crate) fn embedded(folder: &Path, images: &str, more: &[&str], stdin: &[u8]) -> (Rows, String) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let out = folder.join(format!("out-{}.parquet", NEXT.fetch_add(1, Ordering::Relaxed)));
    let output = embed(images, &out, more, stdin);
    assert!(output.status.success(), "{images}: {}", text(&output.stderr));
    (rows_of(&out), text(&output.stderr))
}

fn names(rows: &Rows) -> Vec<&str> {
    rows.keys().map(String::as_str).collect()
}

/// The same vectors, in the order of `ids`, whatever the ids of the other are.
fn same(rows: &Rows, ids: &[String], wanted: &Rows) {
    assert_eq!(rows.len(), wanted.len());
    for (id, (_, vector)) in ids.iter().zip(wanted.values()) {
        assert_eq!(&rows[id].1, vector, "{id}");
    }
}

pub(crate) fn tar_of(file: &Path, members: &[(String, Vec<u8>)]) {
    let mut builder = tar::Builder::new(fs_err::File::create(file).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.finish().unwrap();
}

/// So many pictures in a folder, with their bytes in the order of their ids.
pub(crate) fn pictures(folder: &Path, count: usize) -> (PathBuf, Vec<(String, Vec<u8>)>) {
    let images = folder.join("images");
    many_pictures(&images, count);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    for class in ["even", "odd"] {
        for entry in fs_err::read_dir(images.join(class)).unwrap().map(Result::unwrap) {
            files.push((format!("{class}/{}", entry.file_name().to_str().unwrap()), fs_err::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    (images, files)
}

#[test]
fn tar_shards_have_the_vectors_of_the_folder_and_labels_from_beside() {
    let folder = tempfile::tempdir().unwrap();
    let (images, files) = pictures(folder.path(), 7);
    let (wanted, _) = embedded(folder.path(), images.to_str().unwrap(), &[], b"");
    let shards = folder.path().join("shards");
    fs_err::create_dir(&shards).unwrap();
    for (number, files) in files.chunks(4).enumerate() {
        let mut members = Vec::new();
        for (place, (name, bytes)) in files.iter().enumerate() {
            let key = name.trim_end_matches(".png").replace('/', "-");
            members.push((format!("{key}.png"), bytes.clone()));
            match place % 2 {
                0 => members.push((format!("{key}.cls"), format!("class {number}\n").into_bytes())),
                _ => members.push((format!("{key}.json"), format!("{{\"label\": {place}}}").into_bytes())),
            }
            members.push((format!("{key}.txt"), b"a caption".to_vec()));
        }
        tar_of(&shards.join(format!("{number:04}.tar")), &members);
    }
    let pattern = format!("{}/{{0000..0001}}.tar", shards.display());
    let ids: Vec<String> =
        files.iter().enumerate().map(|(at, (name, _))| format!("{:04}.tar/{}", at / 4, name.replace('/', "-"))).collect();
    let (by_pattern, _) = embedded(folder.path(), &pattern, &[], b"");
    same(&by_pattern, &ids, &wanted);
    let labels: Vec<&str> = ids.iter().map(|id| by_pattern[id].0.as_deref().unwrap()).collect();
    assert_eq!(labels, ["class 0", "1", "class 0", "3", "class 1", "1", "class 1"]);
    let (by_folder, _) = embedded(folder.path(), shards.to_str().unwrap(), &[], b"");
    assert_eq!(by_folder, by_pattern);
    let one = embedded(folder.path(), shards.join("0001.tar").to_str().unwrap(), &[], b"").0;
    assert_eq!(names(&one), names(&by_pattern)[4..].to_vec());

    // Two parts take a file each, five take pictures of both files.
    for count in [2, 5] {
        let parts = (0..count).map(|part| embedded(folder.path(), &pattern, &["--shard", &format!("{part}/{count}")], b"").0);
        let parts: Vec<Rows> = parts.collect();
        assert_eq!(parts.iter().map(Rows::len).sum::<usize>(), 7);
        assert_eq!(parts.into_iter().flatten().collect::<Rows>(), by_pattern, "{count} parts");
    }
}

#[test]
fn damaged_members_and_shards_are_named_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 4);
    let member = |at: usize| (format!("{at}.png"), files[at].1.clone());
    tar_of(&folder.path().join("00.tar"), &[member(0), ("bad.jpg".into(), b"no picture".to_vec()), member(1)]);
    tar_of(&folder.path().join("01.tar"), &[member(2), member(3)]);
    let whole = fs_err::read(folder.path().join("01.tar")).unwrap();
    // The second member ends outside of the file.
    fs_err::write(folder.path().join("01.tar"), &whole[..512 + files[2].1.len().next_multiple_of(512) + 512 + 10]).unwrap();
    fs_err::write(folder.path().join("02.tar"), [7; 3000]).unwrap();
    let pattern = |range: &str| format!("{}/{{{range}}}.tar", folder.path().display());
    let (rows, said) = embedded(folder.path(), &pattern("00..02"), &[], b"");
    assert_eq!(names(&rows), ["00.tar/0.png", "00.tar/1.png", "01.tar/2.png"]);
    for reason in ["00.tar/bad.jpg: ", "01.tar: it is damaged after 1 members", "02.tar: it is damaged after 0 members"] {
        assert_eq!(said.matches(reason).count(), 1, "{reason} in {said}");
    }

    let refused = |images: &str, reason: &str| {
        let output = embed(images, &folder.path().join("none.parquet"), &[], b"");
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(reason), "{images}: {}", text(&output.stderr));
    };
    refused(&pattern("00..03"), "03.tar");
    refused(&pattern("x..03"), "is wanted in braces");
    refused("x.tar.gz", "compressed by gzip: unpack it with gunzip first");
    refused("nothing-there", "give a folder, tar files");
    refused(&pattern("02..02"), "no readable picture");
    refused("https://example.org/x.tar?p=/a/b/{0..1}", "a range in braces has to stand in the path");
    let packed = folder.path().join("packed");
    fs_err::create_dir(&packed).unwrap();
    fs_err::write(packed.join("a.tar.gz"), b"x").unwrap();
    refused(packed.to_str().unwrap(), "a.tar.gz: it is a tar file compressed by gzip");
}

#[test]
fn lists_and_manifests_name_pictures_and_shards() {
    let folder = tempfile::tempdir().unwrap();
    let (images, files) = pictures(folder.path(), 6);
    let (wanted, _) = embedded(folder.path(), images.to_str().unwrap(), &[], b"");
    tar_of(&folder.path().join("s.tar"), &[("5.png".into(), files[5].1.clone())]);
    let path = |at: usize| images.join(&files[at].0).display().to_string();

    let list = format!(
        "{}\nfile://{}\r\n\nid 2\t{}\nid 3\t{}\nmissing.png\n{}\nshard\t{}/s.tar",
        path(0),
        path(1),
        path(2),
        path(3),
        path(4),
        folder.path().display()
    );
    let ids = [path(0), format!("file://{}", path(1)), "id 2".into(), "id 3".into(), path(4), "shard/5.png".into()];
    let (rows, said) = embedded(folder.path(), "-", &[], list.as_bytes());
    same(&rows, &ids, &wanted);
    assert!(said.contains("skipped missing.png: "), "{said}");
    let parts: Vec<Rows> = (0..3).map(|part| embedded(folder.path(), "-", &["--shard", &format!("{part}/3")], list.as_bytes()).0).collect();
    assert_eq!(parts.into_iter().flatten().collect::<Rows>(), rows);

    // Paths of a manifest begin at its folder.
    let lines: Vec<String> =
        (0..6).map(|at| serde_json::json!({"id": at, "path": format!("images/{}", files[at].0), "label": "x"}).to_string()).collect();
    fs_err::write(folder.path().join("m.jsonl"), lines.join("\n")).unwrap();
    let table: Vec<String> = (0..6).map(|at| format!("images/{},{at},x\n", files[at].0)).collect();
    fs_err::write(folder.path().join("m.csv"), format!("path,id,label\n{}", table.concat())).unwrap();
    let ids: Vec<String> = (0..6).map(|at| at.to_string()).collect();
    for name in ["m.jsonl", "m.csv"] {
        let (rows, _) = embedded(folder.path(), folder.path().join(name).to_str().unwrap(), &[], b"");
        same(&rows, &ids, &wanted);
        assert_eq!(rows["3"].0.as_deref(), Some("x"));
    }
    let output = embed("-", &folder.path().join("none.parquet"), &[], b"gopher://x/y\n");
    assert!(text(&output.stderr).contains("line 1: gopher://x/y: addresses begin with"), "{}", text(&output.stderr));
}

/// A table of pictures: as bytes, or as Hugging Face's struct.
fn table(files: &[(String, Vec<u8>)], as_struct: bool) -> RecordBatch {
    let bytes = files.iter().map(|(_, bytes)| bytes.as_slice());
    let image: ArrayRef = if as_struct {
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(bytes));
        let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; files.len()]));
        let fields = [("bytes", DataType::Binary), ("path", DataType::Utf8)].map(|(name, kind)| Arc::new(Field::new(name, kind, true)));
        Arc::new(StructArray::from(fields.into_iter().zip([bytes, paths]).collect::<Vec<_>>()))
    } else {
        Arc::new(LargeBinaryArray::from_iter_values(bytes))
    };
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..files.len()).map(|at| at as i64 % 2)));
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(files.iter().map(|(name, _)| name)));
    let note = r#"{"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}"#;
    let schema = Schema::new(vec![
        Field::new("image", image.data_type().clone(), true),
        Field::new("label", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
    ]);
    let schema = schema.with_metadata([("huggingface".to_owned(), note.to_owned())]);
    RecordBatch::try_new(Arc::new(schema), vec![image, labels, names]).unwrap()
}

#[test]
fn columns_of_parquet_and_arrow_files_have_the_vectors_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (images, mut files) = pictures(folder.path(), 9);
    let (wanted, _) = embedded(folder.path(), images.to_str().unwrap(), &[], b"");
    let path = |name: &str| folder.path().join(name);
    let create = |name: &str| std::fs::File::create(path(name)).unwrap();
    for as_struct in [false, true] {
        let table = table(&files, as_struct);
        let small = WriterProperties::builder().set_max_row_group_row_count(Some(4)).build();
        let mut writer = ArrowWriter::try_new(create("t.parquet"), table.schema(), Some(small)).unwrap();
        writer.write(&table).unwrap();
        writer.close().unwrap();
        let mut writer = arrow_ipc::writer::FileWriter::try_new(create("t.arrow"), &table.schema()).unwrap();
        writer.write(&table.slice(0, 5)).unwrap();
        writer.write(&table.slice(5, 4)).unwrap();
        writer.finish().unwrap();
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(create("s.arrow"), &table.schema()).unwrap();
        writer.write(&table).unwrap();
        writer.finish().unwrap();
        for name in ["t.parquet", "t.arrow", "s.arrow"] {
            let at = path(name);
            let (rows, _) = embedded(folder.path(), at.to_str().unwrap(), &[], b"");
            let ids: Vec<String> = (0..9).map(|row| format!("{name}/{row}")).collect();
            same(&rows, &ids, &wanted);
            assert_eq!((rows[&ids[0]].0.as_deref(), rows[&ids[1]].0.as_deref()), (Some("cat"), Some("dog")));
            let named = ["--id-column", "name", "--image-column", "image", "--label-column", "name"];
            let (rows, _) = embedded(folder.path(), at.to_str().unwrap(), &named, b"");
            same(&rows, &files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), &wanted);
            let parts: Vec<Rows> = (0..3)
                .map(|part| {
                    embedded(folder.path(), at.to_str().unwrap(), &[&named[..], &["--shard", &format!("{part}/3")]].concat(), b"").0
                })
                .collect();
            assert_eq!(parts.into_iter().flatten().collect::<Rows>(), rows);
        }
    }

    // A broken picture is a line, a damaged file ends there, a column that is not there is said.
    files[2].1 = b"broken".to_vec();
    let table = table(&files, false);
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(create("s.arrow"), &table.schema()).unwrap();
    writer.write(&table.slice(0, 5)).unwrap();
    writer.write(&table.slice(5, 4)).unwrap();
    writer.finish().unwrap();
    let whole = fs_err::read(path("s.arrow")).unwrap();
    fs_err::write(path("s.arrow"), &whole[..whole.len() - 40]).unwrap();
    let (rows, said) = embedded(folder.path(), path("s.arrow").to_str().unwrap(), &[], b"");
    assert_eq!(names(&rows), ["s.arrow/0", "s.arrow/1", "s.arrow/3", "s.arrow/4"]);
    assert!(said.contains("s.arrow, row 2: ") && said.contains("s.arrow: it is damaged behind row 5"), "{said}");
    let output = embed(path("t.arrow").to_str().unwrap(), &path("none.parquet"), &["--image-column", "picture"], b"");
    assert_eq!(output.status.code(), Some(1));
    // In a part of several too, where a part without pictures is no failure.
    let part = embed(path("t.arrow").to_str().unwrap(), &path("none.parquet"), &["--image-column", "picture", "--shard", "0/2"], b"");
    assert_eq!((part.status.code(), path("none.parquet").exists()), (Some(1), false));
    assert!(
        text(&output.stderr).contains("t.arrow: it has no column picture (--image-column); it has image, label, name"),
        "{}",
        text(&output.stderr)
    );
}

/// Whatever is changed in a file, the program says so or reads it, and does not panic.
#[test]
fn changed_bytes_of_arrow_files_are_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 3);
    let table = table(&files, true);
    let whole = {
        let mut writer = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &table.schema()).unwrap();
        writer.write(&table).unwrap();
        writer.into_inner().unwrap()
    };
    let damaged = folder.path().join("damaged");
    fs_err::create_dir(&damaged).unwrap();
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    // Most of the file is schema and index.
    for number in 0..100 {
        let mut bytes = whole.clone();
        for _ in 0..=random() % 3 {
            let at = random() % bytes.len();
            bytes[at] = random() as u8;
        }
        fs_err::write(damaged.join(format!("{number:03}.arrow")), bytes).unwrap();
    }
    tar_of(&damaged.join("good.tar"), &[("a.png".into(), files[0].1.clone())]);
    let (rows, said) = embedded(folder.path(), damaged.to_str().unwrap(), &[], b"");
    assert!(rows.contains_key("good.tar/a.png") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_killed_run_over_a_shard_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 600);
    let shard = folder.path().join("s.tar");
    tar_of(&shard, &files);
    let (wanted, _) = embedded(folder.path(), shard.to_str().unwrap(), &[], b"");
    let out = folder.path().join("v.parquet");
    let mut command = program();
    command.arg("embed").arg("--images").arg(&shard).arg("--out").arg(&out).arg("--model").arg(model());
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let parts = folder.path().join(".v.parquet.parts");
    let made = || {
        fs_err::read_dir(&parts)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_str().unwrap().starts_with("0000"))
            .count()
    };
    while made() == 0 && running.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let output = embed(shard.to_str().unwrap(), &out, &[], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(rows_of(&out), wanted);
    assert!(!parts.exists());
    let again = embed(shard.to_str().unwrap(), &out, &[], b"");
    assert!(text(&again.stdout).contains("is up to date"), "{}", text(&again.stdout));
}

/// Serves files of a folder. The first answer to each name that contains `cut` breaks off in its middle; later ones go on where a range asks
/// them to. Names that contain `busy` are answered 503 once, those that contain `away` always.
fn serve(folder: PathBuf) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let ranges = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ranges);
    std::thread::spawn(move || {
        let mut seen = std::collections::HashSet::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let range = lines
                .by_ref()
                .take_while(|line| !line.is_empty())
                .filter_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=")?.trim_end_matches('-').parse::<usize>().ok());
            let from = range.last().unwrap_or(0);
            let is_head = first.starts_with("HEAD ");
            let path = first.split(' ').nth(1).unwrap().split('?').next().unwrap().trim_start_matches('/').to_owned();
            let is_first = !is_head && seen.insert(path.clone());
            let answer = match fs_err::read(folder.join(&path)) {
                _ if path.contains("away") => b"HTTP/1.1 503 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
                _ if path.contains("busy") && is_first => b"HTTP/1.1 503 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
                Ok(bytes) => {
                    let status = if from > 0 { "206 x" } else { "200 x" };
                    counted.fetch_add(usize::from(from > 0), Ordering::Relaxed);
                    let head = format!(
                        "HTTP/1.1 {status}\r\nETag: \"v{}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        bytes.len(),
                        bytes.len() - from
                    );
                    let end = if path.contains("cut") && is_first { bytes.len() / 2 } else { bytes.len() };
                    [head.as_bytes(), if is_head { &[] } else { &bytes[from..end] }].concat()
                }
                Err(_) => b"HTTP/1.1 404 x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            };
            // A client that has left is no failure of this server.
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 1]);
        }
    });
    (address, ranges)
}

#[test]
fn urls_are_read_again_where_they_fail() {
    let folder = tempfile::tempdir().unwrap();
    let (images, files) = pictures(folder.path(), 4);
    let (wanted, _) = embedded(folder.path(), images.to_str().unwrap(), &[], b"");
    fs_err::write(folder.path().join("busy.png"), &files[0].1).unwrap();
    fs_err::write(folder.path().join("cut.png"), &files[1].1).unwrap();
    tar_of(&folder.path().join("cut.tar"), &[("2.png".into(), files[2].1.clone()), ("3.png".into(), files[3].1.clone())]);
    let (server, ranges) = serve(folder.path().to_owned());
    let list = format!("0\t{server}/busy.png?signature=1\n1\t{server}/cut.png\nx\t{server}/none.png\n2\t{server}/cut.tar?signature=2\n");
    let (rows, said) = embedded(folder.path(), "-", &[], list.as_bytes());
    same(&rows, &["0", "1", "2/2.png", "2/3.png"].map(str::to_owned), &wanted);
    assert!(said.contains("none.png: its server answered 404"), "{said}");
    assert_eq!(ranges.load(Ordering::Relaxed), 1, "the tar file went on where it was");
    let (rows, _) = embedded(folder.path(), &format!("{server}/cut.tar"), &[], b"");
    assert_eq!(names(&rows), ["cut.tar/2.png", "cut.tar/3.png"]);

    // A packed file that has changed is read again.
    let (changing, out) = (folder.path().join("changing.tar"), folder.path().join("changing.parquet"));
    fs_err::copy(folder.path().join("cut.tar"), &changing).unwrap();
    let url = format!("{server}/changing.tar?signature=3");
    let said = |output: Output| text(&[output.stdout, output.stderr].concat());
    assert!(said(embed(&url, &out, &[], b"")).contains("wrote 2 embeddings"));
    assert!(said(embed(&url, &out, &[], b"")).contains("is up to date"));
    tar_of(&changing, &[("2.png".into(), files[2].1.clone())]);
    assert!(said(embed(&url, &out, &[], b"")).contains("wrote 1 embeddings"));
}

/// What a host does not answer now is asked for again by the next run, and what is answered is not asked for twice.
#[test]
fn outages_are_no_failures_of_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 2);
    fs_err::write(folder.path().join("0.png"), &files[0].1).unwrap();
    let (server, _) = serve(folder.path().to_owned());
    let list = format!("0\t{server}/0.png\n1\t{}/away.png?token=secret\n", server.replace("http://", "http://user:secret@"));
    let out = folder.path().join("v.parquet");
    let output = embed("-", &out, &[], list.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("1 pictures are on hosts that do not answer") && said.contains("run this again"), "{said}");
    assert!(said.contains("/away.png: its server answered 503") && !said.contains("secret"), "{said}");
    assert!(!out.exists());
    let output = embed("-", &out, &["--skip-unreachable"], list.as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(names(&rows_of(&out)), ["0"]);
}

#[test]
fn manifests_behind_urls_name_pictures_beside_them_and_changed_rows_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 2);
    fs_err::create_dir(folder.path().join("img")).unwrap();
    for (at, (_, bytes)) in files.iter().enumerate() {
        fs_err::write(folder.path().join(format!("img/{at}.png")), bytes).unwrap();
    }
    let (server, _) = serve(folder.path().to_owned());
    let write = |row: &str| fs_err::write(folder.path().join("m.csv"), format!("id,path,label\n{row}\n")).unwrap();
    let (url, out) = (format!("{server}/m.csv?token=1"), folder.path().join("v.parquet"));
    let embed = || {
        let output = embed(&url, &out, &[], b"");
        (output.status.success(), text(&[output.stdout, output.stderr].concat()))
    };
    for (row, said) in
        [("a,img/0.png,x", "wrote 1"), ("a,img/0.png,x", "up to date"), ("a,img/0.png,y", "wrote 1"), ("a,img/1.png,y", "wrote 1")]
    {
        write(row);
        let (succeeds, found) = embed();
        assert!(succeeds && found.contains(said), "{row}: {found}");
    }
    assert_eq!(rows_of(&out)["a"].0.as_deref(), Some("y"));
    write("a,/etc/hostname,x");
    let (succeeds, found) = embed();
    assert!(!succeeds && found.contains("cannot name files of this machine"), "{found}");
}

/// A compressed buffer that says that it becomes 2^45 bytes.
#[test]
fn declared_lengths_of_arrow_files_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 3);
    let table = table(&files, false);
    let options = arrow_ipc::writer::IpcWriteOptions::default().try_with_compression(Some(arrow_ipc::CompressionType::ZSTD)).unwrap();
    let mut writer = arrow_ipc::writer::StreamWriter::try_new_with_options(Vec::new(), &table.schema(), options).unwrap();
    writer.write(&table).unwrap();
    let mut bytes = writer.into_inner().unwrap();
    // Before the magic number of the compression.
    let at = bytes.windows(4).position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]).unwrap() - 8;
    bytes[at..at + 8].copy_from_slice(&(1_i64 << 45).to_le_bytes());
    fs_err::create_dir(folder.path().join("both")).unwrap();
    fs_err::write(folder.path().join("both/bad.arrow"), bytes).unwrap();
    fs_err::write(folder.path().join("both/good.png"), &files[0].1).unwrap();
    let (rows, said) = embedded(folder.path(), folder.path().join("both").to_str().unwrap(), &[], b"");
    assert_eq!(names(&rows), ["good.png"]);
    assert!(said.contains("bad.arrow") && said.contains("is not read"), "{said}");
}

#[test]
fn shards_and_tables_are_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 6);
    let shard = folder.path().join("s.tar");
    tar_of(&shard, &[&files[..4], &[("even/broken.png".into(), b"no".to_vec())]].concat());
    let parquet = folder.path().join("t.parquet");
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&parquet).unwrap(), table(&files, true).schema(), None).unwrap();
    writer.write(&table(&files, true)).unwrap();
    writer.close().unwrap();
    let (data, model) = (folder.path().join("data"), model());
    let import = |images: &Path, more: &[&str]| {
        let output = run(&[&["import"], more].concat(), &[("--images", images), ("--data-dir", &data), ("--model", &model)]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (said, skipped) = import(&shard, &[]);
    assert!(said.contains("4 stored, 0 unchanged, 1 skipped") && skipped.contains("s.tar/even/broken.png: "), "{said}{skipped}");
    assert!(import(&shard, &[]).0.contains("0 stored, 4 unchanged, 1 skipped"));
    assert!(import(&parquet, &["--id-column", "name"]).0.contains("6 stored, 0 unchanged, 0 skipped; 10 items in all"));
    assert!(import(&parquet, &["--id-column", "label"]).1.contains("its id \"0\" came before"));
    let list = folder.path().join("twice.txt");
    fs_err::write(folder.path().join("photo.jpg"), photo("flower.jpg")).unwrap();
    fs_err::write(&list, "photo.jpg\nphoto.jpg\n").unwrap();
    assert!(import(&list, &[]).0.contains("1 stored, 0 unchanged, 1 skipped"));
}
