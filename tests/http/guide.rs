//! The examples of the API guide, run as they stand.

use std::{
    fmt::Write as _,
    process::{Command, Stdio},
};

use crate::harness::{Server, program, python, root};

/// Blocks of code with their languages.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let mut code = String::new();
            for line in lines.by_ref().take_while(|line| *line != "```") {
                writeln!(code, "{line}").unwrap();
            }
            found.push((language.to_owned(), code));
        }
    }
    found
}

#[test]
fn the_examples_of_the_api_guide_run() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("tests"), folder.path().join("tests")).unwrap();
    let data = folder.path().join("data");
    let gallery = root().join("models/demo/gallery.dino");
    let restored = program().arg("restore").arg("--from").arg(gallery).arg("--data-dir").arg(&data).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let model = format!("demo={}", root().join("models/demo").display());
    let server = Server::with_models(&[&model], &["--data-dir", data.to_str().unwrap()]);

    let guide = fs_err::read_to_string(root().join("docs/api.md")).unwrap();
    let blocks = blocks(&guide);
    let mut run = 0;
    for (language, code) in &blocks {
        let code = code.replace("localhost:8080", server.address());
        let mut command = match language.as_str() {
            // curl fails where the server does, and a line that fails ends the block.
            "sh" => {
                let mut command = Command::new("bash");
                command.arg("-euc").arg(code.replace("curl -s ", "curl -sS --fail-with-body "));
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
            other => panic!("a block of {other:?} is not run"),
        };
        let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{language}: {e}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{code}\n{}{said}", String::from_utf8_lossy(&output.stdout));
        run += 1;
    }
    assert!(run > 9, "{run} blocks");
}
