//! Commands of `dino-train` that the documents name exist, with their flags.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

#[path = "../../tests/markdown/mod.rs"]
mod markdown;

use std::path::Path;
use std::process::Command;

use markdown::{commands, documents, unknown};

#[test]
fn commands_and_flags_of_the_trainer_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let help = |verb: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_dino-train")).args([verb, "--help"]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let mut found = 0;
    let mut faults = Vec::new();
    for document in documents(&root) {
        let commands = commands(&fs_err::read_to_string(&document).unwrap(), "dino-train");
        found += commands.len();
        faults.extend(unknown(&commands, help).into_iter().map(|fault| format!("{}: {fault}", document.display())));
    }
    assert!(found > 10, "{found}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
