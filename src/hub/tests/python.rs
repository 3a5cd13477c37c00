//! Hugging Face's own client, `huggingface_hub`, shares the cache: it reads what was fetched here, and the other way round.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};
use std::process::Command;

use dino_hub::{Hub, Settings, Want};
use loopback_hub::{LoopbackHub, Repository};

const ID: &str = "facebook/dinov2-small";

fn repository() -> Repository {
    Repository::new().file("config.json", "{}").file("model.safetensors", vec![7; 300_000])
}

/// The client with the packages of `tests/clients`, which `make test` installs; gives the lines of its output.
fn python(hub: &LoopbackHub, home: &Path, arguments: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join(".cache/clients/python/bin/python3");
    assert!(python.is_file(), "{} is missing: run `make clients`", python.display());
    let mut command = Command::new(python);
    command.arg(root.join("src/hub/tests/client.py")).args(arguments);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home).env_remove("HF_HUB_CACHE").env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect()
}

fn ours(hub: &LoopbackHub, home: &Path, offline: &str) -> PathBuf {
    let vars = [("HF_ENDPOINT", hub.endpoint()), ("HF_HOME", home.display().to_string()), ("HF_HUB_OFFLINE", offline.to_owned())];
    let settings = Settings::from_vars(|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())).unwrap();
    Hub::new(settings).unwrap().fetch(&format!("hf://{ID}").parse().unwrap(), &Want::Weights).unwrap().path
}

#[test]
fn the_client_reads_what_we_fetched() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put(ID, repository());
    let model = ours(&hub, home.path(), "0");
    hub.seen();
    let lines = python(&hub, home.path(), &["read", ID, "config.json", "model.safetensors"]);
    assert_eq!(lines, [model.join("config.json"), model.join("model.safetensors"), model]);
    assert_eq!(hub.seen(), []);
}

#[test]
fn we_read_what_the_client_fetched() {
    let (hub, home) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put(ID, repository());
    let lines = python(&hub, home.path(), &["fetch", ID]);
    hub.seen();
    assert_eq!(lines, [ours(&hub, home.path(), "1")]);
    assert_eq!(hub.seen(), []);
    // With a network too, no file is fetched again.
    assert_eq!(lines, [ours(&hub, home.path(), "0")]);
    assert_eq!(hub.seen().len(), 1);
}
