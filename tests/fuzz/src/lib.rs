//! The untrusted input of the programs. Each function takes any bytes and panics where a promise is broken; libFuzzer calls them
//! (`make fuzz`), and `tests/mutations.rs` with mutated files of the tests, in every `make test`.

pub mod seeds;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderValue, Request, header},
};
use clap::{CommandFactory, FromArgMatches, Parser};
use dino_server::{
    config::ServeArgs,
    fetch::Fetcher,
    http::{self, KeyRing, State},
    serving::Registry,
};
use dino_vision::{
    media::{self, Limits},
    model::Model,
    transform::Transform,
};
use serde_json::Value;
use tower::ServiceExt;

/// Pixels that a picture may declare here: enough for every path, little enough to be fast.
const PIXELS: u64 = 1 << 20;

/// The top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A picture is refused, or has the size that it declares and becomes finite numbers.
pub fn picture(bytes: &[u8]) {
    static TRANSFORM: OnceLock<Transform> = OnceLock::new();
    let limits = Limits::with_max_pixels(PIXELS);
    let declared = media::dimensions(bytes, &limits);
    let Ok(picture) = media::decode(bytes, &limits) else { return };
    let (width, height) = picture.dimensions();
    assert!(u64::from(width) * u64::from(height) <= PIXELS, "{width} x {height} pixels");
    // What the limits count is what comes out, upright or not.
    let (declared_width, declared_height) = declared.expect("a picture that can be decoded declares its size");
    assert!((width, height) == (declared_width, declared_height) || (height, width) == (declared_width, declared_height));
    let transform = TRANSFORM.get_or_init(|| {
        let model = Model::open(&root().join("tests/data/tiny-model")).expect("the tiny model is a model");
        model.manifest().transform.clone()
    });
    assert!(transform.apply(&picture).iter().all(|number| number.is_finite()));
}

/// Where the request target sends its bytes.
const ROUTES: [(&str, &str); 14] = [
    ("POST", "/embed"),
    ("POST", "/segment"),
    ("POST", "/segment?format=png"),
    ("POST", "/classify"),
    ("POST", "/classify?collection=c"),
    ("POST", "/similarity"),
    ("POST", "/v1/embeddings"),
    ("POST", "/collections/c/items"),
    ("POST", "/collections/c/items?id=x&labels=a"),
    ("POST", "/collections/c/search"),
    ("POST", "/collections/c/items/delete"),
    ("POST", "/collections/r/restore?replace=true"),
    ("PUT", "/collections/c"),
    ("POST", "/collections/c/snapshot"),
];
/// Line between the parts of its multipart bodies.
pub const BOUNDARY: &str = "b";
const KINDS: [&str; 5] = ["application/json", "multipart/form-data; boundary=b", "image/png", "application/octet-stream", ""];

/// The first byte of a request that goes to `path` as `kind`; the body follows it.
pub fn first_byte(path: &str, kind: &str) -> u8 {
    let route = ROUTES.iter().position(|(_, known)| *known == path).expect("a path of the request target");
    let kind = KINDS.iter().position(|known| *known == kind).expect("a type of the request target");
    (kind * ROUTES.len() + route) as u8
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

/// A folder for the collections of this process. Nothing is dropped when a process ends, so those of earlier ones are removed here.
fn data() -> PathBuf {
    let all = root().join(".cache/fuzz-data");
    for old in fs_err::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(old.file_name()).exists() {
            let _ = fs_err::remove_dir_all(old.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    // One that an earlier process of this number left.
    let _ = fs_err::remove_dir_all(&own);
    own
}

/// A server without a socket, and threads for it.
struct Inside {
    runtime: tokio::runtime::Runtime,
    routes: Router,
}

impl Inside {
    fn start() -> Self {
        let data = data();
        let model = root().join("tests/data/tiny-model");
        let text = |path: &Path| path.to_str().expect("paths are UTF-8").to_owned();
        let flags = ["serve", "--model", &text(&model), "--data-dir", &text(&data), "--max-pixels", "65536", "--max-body", "256k"];
        // Not what the environment says: it may name a database that is in use.
        let line = Line::command().mut_args(|arg| arg.env(None::<&str>)).get_matches_from(flags);
        let serve = Line::from_arg_matches(&line).expect("these are its flags").serve;
        serve.check().expect("these flags go together");
        let keys = KeyRing::read(serve.http.key_source()).expect("no keys are given");
        let registry = Registry::load(serve.models).expect("the tiny model can be served");
        let (store, opening) = serve.collections.open(serve.http.request_timeout).expect("the folder is there");
        let fetcher = Fetcher::new(&serve.urls, serve.http.max_body).expect("no certificates are given");
        let state = State::new(&serve.http, keys, registry, store, fetcher);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads start");
        runtime.block_on(opening.finished()).expect("an empty folder can be opened");
        Self { runtime, routes: http::routes(Arc::new(state)) }
    }
}

/// Every answer has a promised status, and an error says what it is. The first byte chooses route and type, see [`first_byte`].
pub fn request(bytes: &[u8]) {
    answer(bytes);
}

/// The status and the body of the answer to a request; 0 where there was none.
pub fn answer(bytes: &[u8]) -> (u16, Vec<u8>) {
    static INSIDE: OnceLock<Inside> = OnceLock::new();
    let Some((first, body)) = bytes.split_first() else { return (0, Vec::new()) };
    let (method, path) = ROUTES[usize::from(*first) % ROUTES.len()];
    let kind = KINDS[usize::from(*first) / ROUTES.len() % KINDS.len()];
    let inside = INSIDE.get_or_init(Inside::start);
    let mut request = Request::builder().method(method).uri(path);
    if !kind.is_empty() {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    let request = request.body(Body::from(body.to_vec())).expect("a request of constants");
    inside.runtime.block_on(async {
        let answer = inside.routes.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let (head, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("answers have an end");
        let status = head.status.as_u16();
        assert!(matches!(status, 200..=204 | 400 | 404 | 409 | 413 | 415 | 422), "{method} {path} {kind}: {status} {body:?}");
        if status >= 400 {
            assert_eq!(head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes), Some(&b"application/problem+json"[..]));
            let problem: Value = serde_json::from_slice(&body).expect("a problem is JSON");
            assert_eq!(problem["status"], status);
        }
        (status, body.into())
    })
}

/// A checkpoint is refused, or each tensor that it lists can be read, or is refused.
pub fn checkpoint(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("there is room for a folder");
    let path = folder.path().join("checkpoint.pth");
    fs_err::write(&path, bytes).expect("there is room for a file");
    let Ok(store) = dino_train::weights::open(&path) else { return };
    for name in store.names() {
        if let Ok(tensor) = store.read(name) {
            let count: usize = tensor.shape.iter().product();
            assert_eq!(tensor.data.len(), count, "{name}");
        }
    }
}
