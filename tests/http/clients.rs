//! Clients that are generated from the API document of a running server.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    harness::{Server, root},
    pictures::{png, scene},
};

/// A program of `tests/clients/generators`, which `make test` installs.
fn generator(program: &str) -> PathBuf {
    let path = root().join(".cache/clients/generators").join(program);
    assert!(path.exists(), "{} is missing: run `make clients`", path.display());
    path
}

fn run(folder: &Path, command: &mut Command) {
    let output = command.current_dir(folder).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}\n{err}");
}

#[test]
fn generated_clients_embed_classify_and_segment_with_types() {
    let (data, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::with_data(data.path());
    let (folder, address) = (work.path(), server.address());
    let picture = folder.join("picture.png");
    fs_err::write(&picture, png(&scene(80, 60, 3))).unwrap();
    let document = format!("http://{address}/openapi.json");
    let programs = root().join("tests/clients");

    let config = programs.join("generators/config.yml");
    run(
        folder,
        Command::new(generator("python/bin/openapi-python-client"))
            .args(["generate", "--meta", "none", "--output-path", "dino_client", "--url", &document, "--config"])
            .arg(config),
    );
    run(folder, Command::new(generator("python/bin/python3")).arg(programs.join("generated.py")).arg(address).arg(&picture));

    std::os::unix::fs::symlink(generator("node_modules"), folder.join("node_modules")).unwrap();
    fs_err::copy(programs.join("generated.ts"), folder.join("generated.ts")).unwrap();
    fs_err::write(folder.join("package.json"), r#"{ "type": "module" }"#).unwrap();
    run(folder, Command::new(generator("node_modules/.bin/openapi-typescript")).args([&document, "--output", "api.ts"]));
    let flags = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--types", "node"];
    run(folder, Command::new(generator("node_modules/.bin/tsc")).args(flags).arg("generated.ts"));
    run(folder, Command::new("node").arg("generated.js").arg(address).arg(&picture));
}
