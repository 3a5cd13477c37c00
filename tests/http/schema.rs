//! What `openapi.json` promises, asked of a running server by schemathesis: generated requests to every route, good and bad.

use std::process::Command;

use serde_json::json;

use crate::harness::{Server, python};

#[test]
fn schemathesis_finds_no_5xx_and_no_answer_that_the_document_does_not_describe() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with_data(folder.path());
    server.put("/collections/default", &json!({"model": "tiny-model"}));
    let checks =
        "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance,response_headers_conformance";
    let output = Command::new(python().with_file_name("schemathesis"))
        .args(["run", &format!("http://{}/openapi.json", server.address()), "--checks", checks])
        .args(["--max-examples", "12", "--generation-deterministic", "--continue-on-failure", "--no-color", "--request-timeout", "60"])
        // It keeps its own database of examples where it runs.
        .current_dir(folder.path())
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}\n{}", String::from_utf8_lossy(&output.stderr));
    // It asked, and did not only look at the document.
    let passed = report.split([',', '\n']).find_map(|part| part.trim().strip_suffix(" passed")?.parse::<u32>().ok());
    assert!(passed.is_some_and(|passed| passed > 500), "{report}");
    server.get("/readyz").ok();
}
