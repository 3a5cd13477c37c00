//! The page at `/` and its files, all of them in the program.
//!
//! The page is plain HTML, one style sheet, and one script module for each part of it (`page/app.js` puts them together). It
//! asks only this server, and tells the browser so. It names everything relative to itself, so that it also works below a path that a
//! proxy cuts off.

use std::sync::LazyLock;

use aide::{
    OperationOutput,
    generate::GenContext,
    openapi::{Operation, Response as Described, StatusCode as Status},
};
use axum::{
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

use super::{
    parameters::{FilePath, PathOf},
    problem::Problem,
    response::{Either, FileBody, MediaTypes},
    unknown_route,
};
use crate::index::checksum;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JPEG: &str = "image/jpeg";

/// A file of the page.
struct File {
    name: &'static str,
    kind: &'static str,
    content: &'static [u8],
    /// Its hash, quoted, by which browsers know that they have it.
    tag: String,
}

macro_rules! files {
    ($($name:literal: $kind:expr),+ $(,)?) => {
        [$(File::new($name, $kind, include_bytes!(concat!("page/", $name)))),+]
    };
}

static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let files = files! {
        "index.html": "text/html; charset=utf-8",
        "style.css": "text/css; charset=utf-8",
        "icon.svg": "image/svg+xml",
        "api.js": SCRIPT,
        "app.js": SCRIPT,
        "attention.js": SCRIPT,
        "board.js": SCRIPT,
        "code.js": SCRIPT,
        "convert.js": SCRIPT,
        "dom.js": SCRIPT,
        "given.js": SCRIPT,
        "heat.js": SCRIPT,
        "map.js": SCRIPT,
        "odd.js": SCRIPT,
        "outline.js": SCRIPT,
        "patch_collection.js": SCRIPT,
        "picture.js": SCRIPT,
        "similarity.js": SCRIPT,
        "spot.js": SCRIPT,
        "stage.js": SCRIPT,
        "state.js": SCRIPT,
        "tabs.js": SCRIPT,
        "thumbnail.js": SCRIPT,
        "vote.js": SCRIPT,
        "samples/astronaut-1.jpg": JPEG,
        "samples/astronaut-2.jpg": JPEG,
        "samples/bonsai.jpg": JPEG,
        "samples/sunflower.jpg": JPEG,
        "samples/motorbike.jpg": JPEG,
        "samples/piano.jpg": JPEG,
        "samples/rocket.jpg": JPEG,
        "samples/stop-sign.jpg": JPEG,
        "samples/wood-1.jpg": JPEG,
        "samples/wood-2.jpg": JPEG,
        "samples/wood-3.jpg": JPEG,
        "samples/wood-intact.jpg": JPEG,
        "samples/wood-scratched.jpg": JPEG,
    };
    files.into()
});

impl File {
    fn new(name: &'static str, kind: &'static str, content: &'static [u8]) -> Self {
        let tag = format!("\"{}\"", checksum::of_bytes(content));
        Self { name: name.strip_prefix("samples/").unwrap_or(name), kind, content, tag }
    }

    /// The file, or 304 for a browser that has it. It is asked for each time, so that a new program's page never runs with an old
    /// one's scripts.
    fn answer(&self, headers: &HeaderMap) -> PageResponse {
        let had = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let about = [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
            (header::ETAG, &self.tag),
        ];
        if had.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == self.tag)) {
            return Either::Second(NotModified(about.into_response()));
        }
        Either::First(FileBody::new(self.kind, (about, self.content)))
    }
}

/// A file of the page, or 304.
pub(super) type PageResponse = Either<FileBody<PageFile>, NotModified>;

/// A file of the page.
pub(super) struct PageFile;

impl MediaTypes for PageFile {
    const NAMES: &'static [&'static str] = &["text/html", "text/css", "text/javascript", "image/svg+xml", JPEG];
}

/// 304: the browser has it.
pub(super) struct NotModified(Response);

impl IntoResponse for NotModified {
    fn into_response(self) -> Response {
        (StatusCode::NOT_MODIFIED, self.0).into_response()
    }
}

impl OperationOutput for NotModified {
    type Inner = ();

    fn inferred_responses(_: &mut GenContext, _: &mut Operation) -> Vec<(Option<Status>, Described)> {
        vec![(Some(Status::Code(304)), Described { description: "The browser has it".into(), ..Described::default() })]
    }
}

/// `GET /`.
pub(super) async fn index(headers: HeaderMap) -> PageResponse {
    FILES[0].answer(&headers)
}

/// `GET /page/{file}`.
pub(super) async fn file(PathOf(path): PathOf<FilePath>, uri: Uri, headers: HeaderMap) -> Result<PageResponse, Problem> {
    match FILES.iter().find(|file| file.name == path.file) {
        Some(file) => Ok(file.answer(&headers)),
        None => Err(unknown_route(uri).await),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text(name: &str) -> &'static str {
        str::from_utf8(FILES.iter().find(|file| file.name == name).unwrap().content).unwrap()
    }

    /// All names that `text` has between `start` and a quote.
    fn named(text: &'static str, start: &str) -> impl Iterator<Item = &'static str> {
        text.split(start).skip(1).map(|rest| rest.split('"').next().unwrap())
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_every_file_that_is_named_is_there() {
        assert_eq!(FILES[0].name, "index.html");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/page");
        let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
        let there: BTreeSet<String> = files.map(|entry| entry.file_name().to_str().unwrap().to_owned()).collect();
        let served: BTreeSet<&str> = FILES.iter().map(|file| file.name).collect();
        assert_eq!(there.iter().map(String::as_str).collect::<BTreeSet<_>>(), served);

        let scripts = FILES.iter().filter(|file| file.kind == SCRIPT).map(|file| text(file.name));
        let imported = scripts.flat_map(|script| named(script, "from \"./"));
        for name in named(text("index.html"), "=\"page/").chain(imported) {
            assert!(served.contains(name), "{name}");
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_is_inline() {
        for file in FILES.iter().filter(|file| file.kind != JPEG) {
            let text = text(file.name).replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http://") && !text.contains("https://"), "{}", file.name);
            assert!(file.kind == SCRIPT || !text.contains("url("), "{}", file.name);
            assert!(!text.contains("=\"/") && !text.contains("from \"/") && !text.contains("fetch(\"/"), "{}: below a path", file.name);
        }
        let page = text("index.html");
        let handler = |rest: &str| rest.split_once('=').is_some_and(|(name, _)| name.bytes().all(|letter| letter.is_ascii_lowercase()));
        assert!(!page.split(" on").skip(1).any(handler), "the policy forbids it");
        assert!(!page.contains(" style=") && page.matches("<script").count() == 1, "the policy forbids it");
        let bytes: usize = FILES.iter().map(|file| file.content.len()).sum();
        assert!(bytes < 256 << 10, "the page has grown to {bytes} bytes");
    }

    #[test]
    fn every_method_of_segment_can_be_chosen() {
        for method in dino_vision::segment::Method::ALL {
            assert!(text("index.html").contains(&format!("<option value=\"{method}\">")), "index.html: {method}");
            assert!(text("outline.js").contains(&format!("\n  {method}: [")), "METHODS of outline.js: {method}");
        }
    }

    /// What the page says of the demo model, and of the samples that it gets right, it says of this one alone.
    #[test]
    fn the_demo_model_is_known_by_its_hash() {
        let manifest = fs_err::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let hash = manifest["source"]["sha256"].as_str().unwrap();
        assert!(
            text("app.js").contains(&format!("\"{hash}\"")),
            "for a new demo model change DEMO in app.js, and #demo-note in index.html"
        );
    }

    /// Every element that a script asks for by its id is on the page.
    #[test]
    fn scripts_and_page_agree_on_ids() {
        let page = text("index.html");
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            for id in named(text(file.name), "$(\"") {
                assert!(page.contains(&format!("id=\"{id}\"")), "{}: {id}", file.name);
            }
        }
    }
}
