//! The documents: links lead somewhere, commands exist, and the README fits a terminal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod markdown;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use markdown::{anchors, commands, documents, links, prose, unknown};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs_err::read_to_string(path).unwrap()
}

#[test]
fn every_link_inside_of_the_repository_leads_somewhere() {
    let mut faults = Vec::new();
    for document in documents(&root()) {
        let text = prose(&read(&document));
        for link in links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let known = target.exists() && (anchor.is_empty() || anchors(&prose(&read(&target))).iter().any(|known| known == anchor));
            if !known {
                faults.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn commands_and_flags_of_the_server_exist() {
    let help = |verb: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_dino-server")).args([verb, "--help"]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let mut found = 0;
    let mut faults = Vec::new();
    for document in documents(&root()) {
        let commands = commands(&read(&document), "dino-server");
        found += commands.len();
        faults.extend(unknown(&commands, help).into_iter().map(|fault| format!("{}: {fault}", document.display())));
    }
    assert!(found > 20, "{found}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn methods_of_segment_are_documented() {
    let methods = dino_vision::segment::Method::ALL;
    for document in ["docs/api.md", "docs/models.md"] {
        let text = read(&root().join(document));
        assert!(methods.iter().all(|method| text.contains(&format!("`{method}`"))), "{document} lacks one of {methods:?}");
    }
    let count = format!("| Masks without labels | {} methods |", methods.len());
    assert!(read(&root().join("README.md")).contains(&count), "the README should say: {count}");
    let count = format!("| Masks | {} methods on DINO's features", methods.len());
    assert!(read(&root().join("docs/comparison.md")).contains(&count), "docs/comparison.md should say: {count}");
}

#[test]
fn lines_of_the_readme_are_short() {
    for line in read(&root().join("README.md")).lines().filter(|line| !line.starts_with('|')) {
        assert!(line.chars().count() <= 125, "{line}");
    }
}

#[test]
fn targets_that_the_documents_name_are_in_the_makefile() {
    let makefile = read(&root().join("Makefile"));
    let is_target = |name: &str| makefile.lines().any(|line| line.split(':').next() == Some(name));
    for document in documents(&root()).iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        let text = read(document);
        for span in markdown::spans(&prose(&text)) {
            let name = span.strip_prefix("make ").and_then(|rest| rest.split_whitespace().next());
            let Some(name) = name.filter(|name| !name.ends_with('…')) else { continue };
            assert!(is_target(name), "{}: `{span}`", document.display());
        }
    }
}
