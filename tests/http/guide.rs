//! The requests of README and guides, run as they stand.

use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Server, python, root};
use crate::markdown::{Block, blocks};

/// What an answer in a guide leaves out.
const LEFT_OUT: &str = "…";

/// The demo server, and a folder like a fresh clone to ask it from.
fn demo() -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("tests"), folder.path().join("tests")).unwrap();
    let server = Server::demo(&folder.path().join("data"), &[]);
    (folder, server)
}

/// Runs a block, and returns what it prints; none for blocks that are not for this.
fn run(block: &Block, server: &Server, folder: &TempDir) -> Option<String> {
    let code = block.code.replace("localhost:8080", server.address());
    let mut command = match block.language.as_str() {
        // curl fails where the server does, and a line that fails ends the block.
        "sh" => {
            let mut command = Command::new("bash");
            command.arg("-euc").arg(code.replace("curl ", "curl -sS --fail-with-body "));
            command
        }
        "python" => {
            let mut command = Command::new(python());
            command.arg("-c").arg(&code);
            command
        }
        "js" => {
            let mut command = Command::new("node");
            command.args(["--input-type=module", "--eval"]).arg(&code);
            command
        }
        // Commands that build, download or need the reader's files; answers.
        "console" | "json" => return None,
        other => panic!("a block of {other:?} is not run"),
    };
    let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{}: {e}", block.language));
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{code}\n{printed}{said}");
    Some(printed)
}

/// Whether an answer is the one in the guide: numbers up to what processors round differently, lists up to where they are cut.
fn is_answer(shown: &Value, answered: &Value) -> bool {
    match (shown, answered) {
        (Value::Number(shown), Value::Number(answered)) => {
            let [shown, answered] = [shown, answered].map(|number| number.as_f64().unwrap());
            (shown - answered).abs() <= 0.01 * shown.abs().max(1.0)
        }
        (Value::Array(shown), Value::Array(answered)) => {
            let (shown, cut) = match shown.split_last() {
                Some((last, rest)) if last == LEFT_OUT => (rest, true),
                _ => (shown.as_slice(), false),
            };
            (shown.len() == answered.len() || (cut && shown.len() <= answered.len()))
                && shown.iter().zip(answered).all(|(shown, answered)| is_answer(shown, answered))
        }
        (Value::Object(shown), Value::Object(answered)) => {
            shown.len() == answered.len()
                && shown.iter().all(|(name, shown)| answered.get(name).is_some_and(|answered| is_answer(shown, answered)))
        }
        _ => shown == answered,
    }
}

/// Runs the blocks of a document in their order. JSON right behind a block of requests is their answer.
fn follow(document: &str) -> usize {
    let (folder, server) = demo();
    let text = fs_err::read_to_string(root().join(document)).unwrap();
    let blocks = blocks(&text);
    let mut count = 0;
    for (index, block) in blocks.iter().enumerate() {
        let Some(printed) = run(block, &server, &folder) else { continue };
        count += 1;
        if let Some(answer) = blocks.get(index + 1).filter(|next| next.language == "json" && block.language == "sh") {
            let shown = serde_json::from_str(&answer.code).unwrap_or_else(|e| panic!("{document}: {e}: {}", answer.code));
            let answered = serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{document}: no JSON: {printed}"));
            assert!(is_answer(&shown, &answered), "{document} shows\n{shown:#}\nand the server answered\n{answered:#}");
        }
    }
    count
}

#[test]
fn the_requests_of_the_readme_are_answered_as_it_says() {
    let run = follow("README.md");
    assert!(run > 1, "{run} blocks");
}

#[test]
fn the_examples_of_the_api_guide_run() {
    let run = follow("docs/api.md");
    assert!(run > 9, "{run} blocks");
}

#[test]
fn the_examples_of_the_patches_guide_run() {
    let run = follow("docs/patches.md");
    assert!(run > 2, "{run} blocks");
}

#[test]
fn the_examples_of_the_guide_to_near_copies_run() {
    let run = follow("docs/duplicates.md");
    assert!(run > 2, "{run} blocks");
}

#[test]
fn the_examples_of_the_python_guide_run() {
    let run = follow("docs/python.md");
    assert!(run > 1, "{run} blocks");
}

#[test]
fn the_example_client_classifies_a_folder() {
    let (folder, server) = demo();
    let mut command = Command::new(python());
    command.arg(root().join("examples/client.py")).arg(format!("http://{}", server.address())).arg("tests/data/caltech101-val");
    let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(printed.trim_end().ends_with(" of 100 right"), "{printed}");
}
