//! `GET /docs`: Swagger UI over `/openapi.json`. All of it comes from this server.

use std::{
    io::{Cursor, Read},
    sync::OnceLock,
};

use axum::http::{Uri, header};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

use super::{
    parameters::{FilePath, PathOf},
    problem::{Code, Problem},
    response::{FileBody, MediaTypes},
    unknown_route,
};

/// Everything is named relative to the page: a proxy may show it below a path that it cuts off.
const PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>dino-server: routes</title>
<link rel="icon" href="page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"#;
const START: &str = "SwaggerUIBundle({ url: 'openapi.json', dom_id: '#ui', deepLinking: true, validatorUrl: null });\n";
/// Styles and icons of Swagger UI are inline; nothing comes from elsewhere.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// A file of Swagger UI.
pub(super) struct DocsFile;

const SCRIPT: &str = "text/javascript";
const STYLE: &str = "text/css";
const HTML: &str = "text/html; charset=utf-8";

impl MediaTypes for DocsFile {
    const NAMES: &'static [&'static str] = &["text/html", SCRIPT, STYLE];
}

pub(super) async fn page() -> FileBody<DocsFile> {
    FileBody::new(HTML, ([(header::CONTENT_SECURITY_POLICY, POLICY)], PAGE))
}

/// A file that the page needs.
pub(super) async fn file(PathOf(path): PathOf<FilePath>, uri: Uri) -> Result<FileBody<DocsFile>, Problem> {
    static UNPACKED_SCRIPT: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    static UNPACKED_STYLE: OnceLock<Option<Vec<u8>>> = OnceLock::new();

    let FilePath { file: name } = path;
    let (kind, content) = match name.as_str() {
        "start.js" => return Ok(FileBody::new(SCRIPT, START)),
        "swagger-ui-bundle.js" => (SCRIPT, UNPACKED_SCRIPT.get_or_init(|| unpack(&name))),
        "swagger-ui.css" => (STYLE, UNPACKED_STYLE.get_or_init(|| unpack(&name))),
        _ => return Err(unknown_route(uri).await),
    };
    match content {
        Some(content) => Ok(FileBody::new(kind, ([(header::CACHE_CONTROL, "max-age=86400")], content.as_slice()))),
        None => Err(Problem::new(Code::Internal, "the page's files are not in this build")),
    }
}

/// A file of the packed Swagger UI.
fn unpack(name: &str) -> Option<Vec<u8>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED)).ok()?;
    let end = format!("/dist/{name}");
    let path = archive.file_names().flatten().find(|path| path.ends_with(&end))?.into_owned();
    let mut content = Vec::new();
    archive.by_name(&path).ok()?.read_to_end(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_page_needs_is_there() {
        assert!(unpack("swagger-ui-bundle.js").unwrap().len() > 100_000);
        assert!(unpack("swagger-ui.css").unwrap().len() > 10_000);
        assert!(!PAGE.contains("http"));
    }
}
