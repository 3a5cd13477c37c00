//! Objects that a storage refuses, and those that stand for folders: a server that speaks as much of S3 as it takes to read.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::common::{model, program, text};
use super::objects::{BUCKET, embed, with_access};
use super::sources::{pictures, rows_of};

struct Objects {
    bytes: BTreeMap<String, Vec<u8>>,
    /// The key that is refused, and how.
    refused: (String, StatusCode),
    /// Whether that was restored.
    is_restored: AtomicBool,
    /// Objects that are given before the credentials have expired.
    left: AtomicUsize,
    /// Objects that were given from their beginning to their end.
    whole: AtomicUsize,
}

impl Objects {
    fn list(&self, prefix: &str) -> String {
        let objects = self.bytes.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, bytes)| {
            let size = bytes.len();
            format!("<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>{size}</Size></Contents>")
        });
        format!("<ListBucketResult>{}</ListBucketResult>", objects.collect::<Vec<_>>().concat())
    }

    fn get(&self, method: &Method, headers: &HeaderMap, key: &str) -> Response {
        let Some(bytes) = self.bytes.get(key) else { return StatusCode::NOT_FOUND.into_response() };
        if key == self.refused.0 && !self.is_restored.load(Ordering::Relaxed) {
            return (self.refused.1, "<Error><Code>InvalidObjectState</Code></Error>").into_response();
        }
        let take = |left: usize| left.checked_sub(usize::from(*method == Method::GET));
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            return (StatusCode::FORBIDDEN, "<Error><Code>ExpiredToken</Code></Error>").into_response();
        }
        let etag = (header::ETAG, format!("\"{}\"", bytes.len()));
        match (headers.get(header::RANGE), bytes.first()) {
            (Some(range), Some(first)) => {
                assert_eq!(range, "bytes=0-0");
                let range = (header::CONTENT_RANGE, format!("bytes 0-0/{}", bytes.len()));
                (StatusCode::PARTIAL_CONTENT, [etag, range], vec![*first]).into_response()
            }
            (Some(_), None) => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
            (None, _) => {
                self.whole.fetch_add(usize::from(*method == Method::GET), Ordering::Relaxed);
                ([etag], bytes.clone()).into_response()
            }
        }
    }
}

/// A storage with these objects, of which it refuses one.
struct Storage {
    objects: Arc<Objects>,
    port: u16,
    /// Ends with it.
    _runtime: Runtime,
}

impl Storage {
    fn start(bytes: BTreeMap<String, Vec<u8>>, refused: &str, status: StatusCode) -> Self {
        let refused = (refused.to_owned(), status);
        let (is_restored, left, whole) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
        let objects = Arc::new(Objects { bytes, refused, is_restored, left, whole });
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&objects));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { objects, port, _runtime: runtime }
    }

    fn gives(&self, count: usize) {
        self.objects.left.store(count, Ordering::Relaxed);
    }

    fn restores(&self) {
        self.objects.is_restored.store(true, Ordering::Relaxed);
    }

    /// How many objects were given as a whole since the last look.
    fn whole(&self) -> usize {
        self.objects.whole.swap(0, Ordering::Relaxed)
    }
}

async fn answer(
    State(objects): State<Arc<Objects>>,
    Query(query): Query<HashMap<String, String>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    match query.get("prefix") {
        Some(prefix) => objects.list(prefix).into_response(),
        None => objects.get(&method, &headers, uri.path().strip_prefix(&format!("/{BUCKET}/")).unwrap_or_default()),
    }
}

fn keyed(files: &[(String, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(name, bytes)| (format!("images/{name}"), bytes.clone())).collect()
}

fn ids(failures: &Path) -> Vec<String> {
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    fs_err::read_to_string(failures).unwrap().lines().map(id).collect()
}

#[test]
fn a_refused_object_is_one_failure_and_folders_are_no_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 6);
    let mut objects = keyed(&files);
    // Between a folder and what is in it, by the order of names.
    objects.insert("images/even-1.png".to_owned(), files[0].1.clone());
    // Of the last nothing says that it is a folder.
    for empty in ["images/", "images/even/", "images/odd/", "images/empty/"] {
        objects.insert(empty.to_owned(), Vec::new());
    }
    let storage = Storage::start(objects, "images/even-1.png", StatusCode::FORBIDDEN);
    let (from, into) = (format!("s3://{BUCKET}/images/"), format!("{}/", folder.path().join("out").display()));
    let output = embed(storage.port, &["--images", &from, "--out", &into]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the storage refuses this object, and gives others"), "{}", text(&output.stderr));
    // Another one is asked for a byte alone.
    assert_eq!(storage.whole(), 6);
    let part = folder.path().join("out/part-00000-of-00001.parquet");
    assert_eq!(rows_of(&part).into_keys().collect::<Vec<_>>(), files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    assert_eq!(ids(&part.with_extension("failures.jsonl")), ["empty", "even-1.png"]);
    let again = embed(storage.port, &["--images", &from, "--out", &into]);
    assert!(text(&again.stdout).contains("is up to date"), "{}{}", text(&again.stdout), text(&again.stderr));
    assert_eq!(storage.whole(), 0);

    let mut import = program();
    import.args(["import", "--images", &from, "--data-dir"]).arg(folder.path().join("data")).arg("--model").arg(model());
    let imported = with_access(&mut import, storage.port).output().unwrap();
    assert!(text(&imported.stdout).contains("6 stored, 0 unchanged, 2 skipped"), "{}", text(&imported.stderr));

    // Restored from an archive, its size and its time are those of before.
    storage.restores();
    for said in ["wrote 7 embeddings", "is up to date"] {
        let output = embed(storage.port, &["--images", &from, "--out", &into]);
        assert!(text(&output.stdout).contains(said), "{}{}", text(&output.stdout), text(&output.stderr));
    }
    assert_eq!((rows_of(&part).len(), ids(&part.with_extension("failures.jsonl"))), (7, vec!["empty".to_owned()]));
}

/// What an unfinished run has kept of a batch leaves out no object that was refused then.
#[test]
fn an_object_that_is_given_to_the_next_run_is_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 2);
    // One more than a batch has.
    let objects: BTreeMap<_, _> = (0..257).map(|number| (format!("images/{number:03}.png"), files[number % 2].1.clone())).collect();
    let storage = Storage::start(objects, "images/000.png", StatusCode::FORBIDDEN);
    let (from, out) = (format!("s3://{BUCKET}/images/"), folder.path().join("out.parquet"));
    let run = || embed(storage.port, &["--images", &from, "--out", out.to_str().unwrap()]);
    // The others of the first batch, and a byte of one of them.
    storage.gives(256);
    let output = run();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("ExpiredToken"), "{}", text(&output.stderr));
    storage.gives(usize::MAX);
    storage.restores();
    let output = run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(rows_of(&out).len(), 257);
}

#[test]
fn objects_of_a_list_are_refused_alone_too() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 3);
    let urls: Vec<String> = files.iter().map(|(name, _)| format!("s3://{BUCKET}/images/{name}")).collect();
    let list = |name: &str, urls: &[String]| {
        let path = folder.path().join(name);
        fs_err::write(&path, urls.join("\n")).unwrap();
        path.display().to_string()
    };
    let (all, one) = (list("all.txt", &urls), list("one.txt", &urls[..1]));
    for status in [StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN, StatusCode::CONFLICT] {
        let storage = Storage::start(keyed(&files), &format!("images/{}", files[0].0), status);
        let out = folder.path().join(format!("{}.parquet", status.as_u16()));
        let output = embed(storage.port, &["--images", &all, "--out", out.to_str().unwrap()]);
        assert!(output.status.success(), "{status}: {}", text(&output.stderr));
        assert_eq!(rows_of(&out).into_keys().collect::<Vec<_>>(), urls[1..], "{status}");
        // Nothing tells it from credentials that are wrong.
        let output = embed(storage.port, &["--images", &one, "--out", folder.path().join("one.parquet").to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{status}: {}", text(&output.stderr));
        assert!(!folder.path().join("one.parquet").exists());
    }
}

#[test]
fn credentials_that_end_make_no_failures() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = pictures(folder.path(), 12);
    let storage = Storage::start(keyed(&files), "", StatusCode::FORBIDDEN);
    let (from, out) = (format!("s3://{BUCKET}/images/"), folder.path().join("out.parquet"));
    for given in [0, 5] {
        storage.gives(given);
        let output = embed(storage.port, &["--images", &from, "--out", out.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{given}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("ExpiredToken"), "{given}: {}", text(&output.stderr));
        assert!(!out.exists(), "{given}");
    }
    storage.gives(usize::MAX);
    let output = embed(storage.port, &["--images", &from, "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(rows_of(&out).len(), 12);
}
