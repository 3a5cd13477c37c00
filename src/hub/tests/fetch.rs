//! Fetching from a hub on loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use dino_hub::{Error, Fetched, Hub, Name, RetryPolicy, Settings, Want};
use loopback_hub::{Access, Fault, LoopbackHub, Repository, STRANGER, Seen, TOKEN};
use serde_json::json;
use tempfile::TempDir;

const ID: &str = "facebook/dinov2-small";
const NAME: &str = "hf://facebook/dinov2-small";
const CONFIG: &str = r#"{"model_type": "dinov2"}"#;

/// Bytes that are not all the same; more than one read of a socket has.
fn weights(seed: u8) -> Vec<u8> {
    (0..600_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect()
}

fn small() -> Repository {
    Repository::new().file("config.json", CONFIG).file("README.md", "# model").file("model.safetensors", weights(0))
}

/// A hub and an empty cache.
struct House {
    hub: LoopbackHub,
    cache: TempDir,
}

impl House {
    fn new() -> Self {
        let hub = LoopbackHub::start();
        hub.put(ID, small());
        Self { hub, cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self, vars: &[(&str, &str)]) -> Settings {
        let own = [("HF_ENDPOINT", self.hub.endpoint()), ("HF_HOME", self.cache.path().display().to_string())];
        let given = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let var = |name: &str| given(name).or_else(|| own.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()));
        let mut settings = Settings::from_vars(var).unwrap();
        settings.retry = RetryPolicy { backoff: Duration::from_millis(1), read_timeout: Duration::from_secs(1), ..settings.retry };
        settings
    }

    fn with(&self, vars: &[(&str, &str)], name: &str, want: &Want) -> Result<Fetched, Error> {
        Hub::new(self.settings(vars))?.fetch(&name.parse::<Name>().unwrap(), want)
    }

    fn weights(&self, name: &str) -> Result<Fetched, Error> {
        self.with(&[], name, &Want::Weights)
    }

    fn offline(&self, name: &str, want: &Want) -> Result<Fetched, Error> {
        self.with(&[("HF_HUB_OFFLINE", "1")], name, want)
    }

    /// What the repository's folder in the cache has, below `part`.
    fn cached(&self, part: &str) -> PathBuf {
        self.cache.path().join("hub/models--facebook--dinov2-small").join(part)
    }

    fn blobs(&self) -> Vec<PathBuf> {
        fs_err::read_dir(self.cached("blobs")).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// The message of an error has these parts, and no secret.
#[track_caller]
fn says(outcome: Result<Fetched, Error>, parts: &[&str]) {
    let error = outcome.unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(!error.contains(TOKEN) && !error.contains("Signature"), "{error}");
}

fn graph(precision: &str) -> Want {
    Want::Graph { precision: precision.to_owned() }
}

fn targets(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.target.as_str()).collect()
}

fn same(path: &Path, bytes: &[u8]) -> bool {
    fs_err::read(path).unwrap() == bytes
}

#[test]
fn a_model_lies_in_the_cache_as_the_library_has_it() {
    let house = House::new();
    let commit = small().commit();
    let model = house.weights(NAME).unwrap();
    assert_eq!(model.path, house.cached("snapshots").join(&commit));
    assert_eq!(model.name.to_string(), format!("{NAME}@{commit}"));
    assert!(same(&model.path.join("model.safetensors"), &weights(0)));
    let link = fs_err::read_link(model.path.join("config.json")).unwrap();
    assert!(link.starts_with("../../blobs") && link.file_name().unwrap().len() == 40, "{}", link.display());
    assert_eq!(fs_err::read_link(model.path.join("model.safetensors")).unwrap().file_name().unwrap().len(), 64);
    assert_eq!(fs_err::read_to_string(house.cached("refs/main")).unwrap(), commit);
    assert!(house.cached(".no_exist").join(&commit).join("preprocessor_config.json").exists());
    assert!(!model.path.join("README.md").exists());
    assert_eq!(house.blobs().len(), 2);
    assert!(house.cache.path().join("hub/.locks/models--facebook--dinov2-small").is_dir());
    // Again: the hub is asked what main is at, and for no file.
    house.hub.seen();
    assert_eq!(house.weights(NAME).unwrap().path, model.path);
    assert_eq!(targets(&house.hub.seen()), ["/api/models/facebook/dinov2-small/revision/main?blobs=true"]);
    // By its commit: nothing is asked at all.
    assert_eq!(house.weights(&model.name.to_string()).unwrap(), model);
    assert_eq!(house.hub.seen(), []);
}

#[test]
fn what_another_folder_has_is_not_marked_absent() {
    let house = House::new();
    let repository = small().file("preprocessor_config.json", "{}").file("sub/x.pth", weights(1));
    house.hub.put(ID, repository.clone());
    house.weights(&format!("{NAME}/sub/x.pth")).unwrap();
    let absent = house.cached(".no_exist").join(repository.commit());
    for config in ["config.json", "preprocessor_config.json"] {
        assert!(absent.join("sub").join(config).exists() && !absent.join(config).exists(), "{config}");
    }
}

#[test]
fn a_new_commit_shares_what_stayed_the_same() {
    let house = House::new();
    let old = house.weights(NAME).unwrap();
    house.hub.put(ID, small().file("config.json", "{}"));
    house.hub.seen();
    let new = house.weights(NAME).unwrap();
    assert_ne!(old.path, new.path);
    assert!(!house.hub.seen().iter().any(|seen| seen.store));
    let whole = |model: &Fetched| model.path.join("model.safetensors").canonicalize().unwrap();
    assert_eq!(whole(&old), whole(&new));
    assert_eq!(fs_err::read_to_string(old.path.join("config.json")).unwrap(), CONFIG);
    house.hub.tag(ID, "refs/pr/1", &small().commit());
    house.hub.tag(ID, "feature/x", &small().commit());
    for name in ["hf://facebook/dinov2-small@refs/pr/1", "hf://facebook/dinov2-small@feature%2Fx"] {
        assert_eq!(house.weights(name).unwrap().path, old.path);
    }
    assert!(house.cached("refs/refs/pr/1").is_file() && house.cached("refs/feature/x").is_file());
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let house = House::new();
    house.hub.send_small_files_on();
    house.with(&[("HF_TOKEN", TOKEN)], NAME, &Want::Weights).unwrap();
    let seen = house.hub.seen();
    let to_store: Vec<_> = seen.iter().filter(|seen| seen.store).map(|seen| seen.authorization.clone()).collect();
    assert_eq!(to_store, [None]);
    assert!(seen.iter().filter(|seen| !seen.store).all(|seen| seen.authorization.as_deref() == Some("Bearer hf_reader")));
    assert!(targets(&seen).iter().any(|path| path.starts_with("/api/resolve-cache/")));
}

#[test]
fn what_breaks_off_goes_on_where_it_was() {
    let house = House::new();
    house.hub.fail("/blobs/", 1, Fault::BreakOff(250_000));
    house.hub.fail("/blobs/", 1, Fault::Stall(100_000));
    let model = house.weights(NAME).unwrap();
    assert!(same(&model.path.join("model.safetensors"), &weights(0)));
    let ranges: Vec<_> = house.hub.seen().into_iter().filter(|seen| seen.store).map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=250000-".to_owned()), Some("bytes=350000-".to_owned())]);
}

#[test]
fn the_next_start_goes_on_where_the_last_one_ended() {
    let house = House::new();
    house.hub.fail("/blobs/", 5, Fault::BreakOff(20_000));
    says(house.weights(NAME), &["127.0.0.1 does not answer", "breaks off after 100000 of 600000", "model.safetensors"]);
    let kept = house.blobs().into_iter().find(|path| path.extension().is_some_and(|end| end == "incomplete")).unwrap();
    assert_eq!(fs_err::metadata(&kept).unwrap().len(), 100_000);
    assert!(!house.cached("refs/main").exists());
    house.hub.seen();
    let model = house.weights(NAME).unwrap();
    assert!(same(&model.path.join("model.safetensors"), &weights(0)));
    assert!(!kept.exists());
    assert!(house.hub.seen().iter().any(|seen| seen.range.as_deref() == Some("bytes=100000-")));
}

#[test]
fn what_was_kept_is_checked() {
    for kept in [vec![7; 100_000], vec![7; 600_000], vec![7; 700_000]] {
        let house = House::new();
        let blob = house.weights(NAME).unwrap().path.join("model.safetensors").canonicalize().unwrap();
        fs_err::rename(&blob, blob.with_extension("incomplete")).unwrap();
        fs_err::write(blob.with_extension("incomplete"), kept).unwrap();
        assert!(same(&house.weights(NAME).unwrap().path.join("model.safetensors"), &weights(0)));
    }
}

#[test]
fn a_store_without_ranges_sends_all_of_it() {
    let house = House::new();
    house.hub.fail("/blobs/", 1, Fault::BreakOff(250_000));
    house.hub.fail("/blobs/", 1, Fault::NoRanges);
    assert!(same(&house.weights(NAME).unwrap().path.join("model.safetensors"), &weights(0)));
}

#[test]
fn damaged_bytes_get_no_name() {
    for (part, file, kind) in [("/blobs/", "model.safetensors", "SHA-256"), ("/config.json", "config.json", "git hash")] {
        let house = House::new();
        house.hub.fail(part, 2, Fault::Corrupt);
        says(house.weights(NAME), &["arrives damaged", file, kind]);
        assert!(!house.cached("refs/main").exists());
        assert!(house.offline(NAME, &Want::Weights).is_err());
        // Damaged once only: it is fetched once more.
        house.hub.fail(part, 1, Fault::Corrupt);
        house.weights(NAME).unwrap();
    }
}

#[test]
fn lengths_are_those_that_the_hub_says() {
    let house = House::new();
    house.hub.fail("/blobs/", 1, Fault::Pointer);
    says(house.weights(NAME), &["model.safetensors", "the hub says 600000"]);
    house.hub.fail("/blobs/", 1, Fault::Longer);
    says(house.weights(NAME), &["model.safetensors", "the hub says 600000"]);
    house.hub.fail("/blobs/", 1, Fault::Coded);
    says(house.weights(NAME), &["coding gzip"]);
    house.hub.fail("/blobs/", 1, Fault::Undeclared);
    house.weights(NAME).unwrap();
}

#[test]
fn busy_hubs_are_asked_again() {
    let house = House::new();
    house.hub.fail("/api/models", 2, Fault::Status(503, vec![]));
    house.hub.fail("/api/models", 1, Fault::Status(429, vec![("Retry-After", "0".to_owned())]));
    house.hub.fail("/config.json", 1, Fault::Status(500, vec![]));
    house.hub.fail("/blobs/", 1, Fault::Status(503, vec![]));
    house.weights(NAME).unwrap();
    // A new cache, and a hub that stays so.
    let other = House { cache: tempfile::tempdir().unwrap(), hub: house.hub };
    other.hub.fail("/api/models", 100, Fault::Status(503, vec![]));
    other.hub.seen();
    says(other.weights(NAME), &["answers 503 again and again", "try again later"]);
    assert_eq!(other.hub.seen().len(), 5);
}

#[test]
fn a_wait_that_is_too_long_is_said() {
    let house = House::new();
    house.hub.fail("/api/models", 1, Fault::Status(429, vec![("Retry-After", "86400".to_owned())]));
    says(house.weights(NAME), &["429", "wait 86400 s", "HF_TOKEN"]);
    house.hub.fail("/api/models", 1, Fault::Status(429, vec![("RateLimit", "\"api\";r=0;t=300".to_owned())]));
    says(house.weights(NAME), &["429", "wait 300 s"]);
}

#[test]
fn gated_and_private_repositories_say_what_to_do() {
    let house = House::new();
    house.hub.put("meta/gated", small().access(Access::Gated));
    house.hub.put("me/private", small().access(Access::Private));
    let page = format!("{}/meta/gated", house.hub.endpoint());
    let get = |token: &str, name: &str| house.with(&[("HF_TOKEN", token)], name, &Want::Weights);
    says(get("", "hf://meta/gated"), &["is gated", &page, "settings/tokens", "HF_TOKEN"]);
    says(get(STRANGER, "hf://meta/gated"), &["is gated", &page, "token from HF_TOKEN has no access yet"]);
    says(get("", "hf://me/private"), &["has no repository me/private", "if the repository is private", "hf auth login", "set HF_TOKEN"]);
    says(get(STRANGER, "hf://me/private"), &["has no repository me/private", "the token from HF_TOKEN may not read it"]);
    says(get("hf_old", "hf://me/private"), &["does not accept the token from HF_TOKEN", "settings/tokens"]);
    says(get("", "hf://me/nothing"), &["has no repository me/nothing"]);
    get(TOKEN, "hf://meta/gated").unwrap();
    get(TOKEN, "hf://me/private").unwrap();
    // What was fetched with a token is there without it.
    let gated = get("", "hf://meta/gated").unwrap();
    get("", "hf://me/private").unwrap();
    // Also when there is a newer commit, whose files the hub lists and does not give.
    house.hub.put("meta/gated", small().file("config.json", "{}").access(Access::Gated));
    assert_eq!(get("", "hf://meta/gated").unwrap(), gated);
}

#[test]
fn a_commit_means_the_same_whatever_was_fetched_before() {
    let house = House::new();
    let all = small().file("onnx/model.onnx", weights(1)).file("onnx/model_fp16.onnx", weights(2));
    house.hub.put(ID, all.clone());
    let pinned = format!("{NAME}@{}", all.commit());
    let either = Want::Either { precision: "f32".to_owned() };
    assert!(house.with(&[], &pinned, &graph("f32")).unwrap().path.ends_with("onnx/model.onnx"));
    // The file of the other precision, and the weights, are not there yet, and not replaced by what is.
    assert!(house.with(&[], &pinned, &graph("f16")).unwrap().path.ends_with("onnx/model_fp16.onnx"));
    assert!(house.with(&[], &pinned, &either).unwrap().path.join("model.safetensors").is_file());

    let two = Repository::new().file("a.pth", weights(3)).file("b.pth", weights(4));
    house.hub.put("o/two", two.clone());
    house.weights("hf://o/two/a.pth").unwrap();
    says(house.weights(&format!("hf://o/two@{}", two.commit())), &["2 files of weights", "a.pth, b.pth"]);
    says(house.offline("hf://o/two", &Want::Weights), &["2 files of weights"]);
}

#[test]
fn what_other_programs_have_cached_is_completed() {
    let house = House::new();
    house.weights(NAME).unwrap();
    // As `hf download` of one file leaves it: no list, and no configuration.
    fs_err::remove_dir_all(house.cached(".dino")).unwrap();
    let snapshot = house.cached("snapshots").join(small().commit());
    fs_err::remove_file(snapshot.join("config.json")).unwrap();
    house.weights(&format!("{NAME}@{}", small().commit())).unwrap();
    assert!(snapshot.join("config.json").is_file());
}

#[test]
fn what_a_store_refuses_is_tried_anew() {
    for status in [401, 403, 404] {
        let house = House::new();
        house.hub.fail("/blobs/", 2, Fault::Status(status, vec![]));
        house.weights(NAME).unwrap();
    }
}

#[test]
fn revisions_and_files_that_there_are_not_are_named() {
    let house = House::new();
    says(house.weights("hf://facebook/dinov2-small@v9"), &["no revision \"v9\"", "/facebook/dinov2-small/tree/main"]);
    let held = "README.md, config.json, model.safetensors";
    says(house.weights("hf://facebook/dinov2-small/dino.pth"), &["dino.pth does not exist", held]);
    let way_out = "dino-train export --checkpoint hf://facebook/dinov2-small";
    says(house.with(&[], NAME, &graph("f32")), &["weights, and neither an ONNX file nor a model folder", way_out]);
    house.hub.put("o/empty", Repository::new().file("README.md", ""));
    says(house.weights("hf://o/empty"), &["holds no weights", "README.md"]);
}

#[test]
fn shards_come_whole() {
    let house = House::new();
    let index = json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).to_string();
    let shards = Repository::new().file("config.json", CONFIG).file("model.safetensors.index.json", index);
    let shards = shards.file("model-1.safetensors", weights(1));
    house.hub.put("o/shards", shards.clone());
    says(house.weights("hf://o/shards"), &["model-2.safetensors does not exist"]);
    house.hub.put("o/shards", shards.file("model-2.safetensors", weights(2)));
    let model = house.weights("hf://o/shards").unwrap();
    assert!(same(&model.path.join("model-2.safetensors"), &weights(2)));
}

#[test]
fn folders_of_models_come_in_one_precision() {
    let house = House::new();
    let manifest = json!({"files": {"f32": {"name": "model.onnx"}, "int8": {"name": "model.int8.onnx"}}}).to_string();
    let folder = Repository::new().file("manifest.json", manifest).file("model.onnx", weights(1)).file("model.int8.onnx", weights(2));
    house.hub.put("o/folder", folder);
    let model = house.with(&[], "hf://o/folder", &graph("int8")).unwrap();
    assert!(model.path.join("manifest.json").is_file() && model.path.join("model.int8.onnx").is_file());
    assert!(!model.path.join("model.onnx").exists());
    says(house.offline("hf://o/folder", &graph("f32")), &["model.onnx is missing", "HF_HUB_OFFLINE"]);
    // By its commit too, the other precision is missing and comes.
    assert!(house.with(&[], &model.name.to_string(), &graph("f32")).unwrap().path.join("model.onnx").is_file());
    house.offline("hf://o/folder", &graph("f32")).unwrap();
}

#[test]
fn folders_of_models_come_with_their_data_files() {
    let house = House::new();
    let manifest = json!({"files": {"f32": {"name": "model.onnx", "data": {"name": "model.onnx_data"}}}}).to_string();
    let folder = Repository::new().file("manifest.json", manifest).file("model.onnx", weights(1)).file("model.onnx_data", weights(2));
    house.hub.put("o/large", folder);
    let model = house.with(&[], "hf://o/large", &graph("f32")).unwrap();
    assert!(same(&model.path.join("model.onnx"), &weights(1)) && same(&model.path.join("model.onnx_data"), &weights(2)));
}

#[test]
fn graphs_come_with_their_weights() {
    let house = House::new();
    let onnx = Repository::new().file("config.json", "{}").file("preprocessor_config.json", "{}");
    house.hub.put("o/onnx", onnx.file("onnx/model.onnx", weights(3)).file("onnx/model.onnx_data", weights(4)));
    let model = house.with(&[], "hf://o/onnx", &graph("f32")).unwrap();
    assert!(model.path.ends_with("onnx/model.onnx") && same(&model.path.with_extension("onnx_data"), &weights(4)));
    assert!(model.path.ancestors().nth(2).unwrap().join("preprocessor_config.json").is_file());
}

#[test]
fn hostile_names_have_no_place() {
    let house = House::new();
    let hostile = small().phantom("../../../../evil.json").phantom("/etc/evil").phantom("a\\..\\evil");
    house.hub.put("o/hostile", hostile);
    house.weights("hf://o/hostile").unwrap();
    let index = json!({"weight_map": {"a": "../../../evil.safetensors"}}).to_string();
    house.hub.put("o/index", Repository::new().file("model.safetensors.index.json", index));
    says(house.weights("hf://o/index"), &["does not lie beside it"]);
    let mut all = walkdir::WalkDir::new(house.cache.path()).into_iter().filter_map(Result::ok);
    assert!(!all.any(|entry| entry.file_name().to_string_lossy().contains("evil")));
}

#[test]
fn without_a_hub_the_cache_is_used() {
    let house = House::new();
    says(house.offline(NAME, &Want::Weights), &["is not in the cache", "never fetched", "HF_HUB_OFFLINE is set"]);
    let model = house.weights(NAME).unwrap();
    house.hub.seen();
    assert_eq!(house.offline(NAME, &Want::Weights).unwrap().path, model.path);
    assert_eq!(house.hub.seen(), []);
    // The hub fails: what there is is taken at once.
    house.hub.fail("/api/models", 1, Fault::Status(503, vec![]));
    assert_eq!(house.weights(NAME).unwrap().path, model.path);
    assert_eq!(house.hub.seen().len(), 1);
    // A blob that is gone is missed.
    fs_err::remove_file(model.path.join("model.safetensors").canonicalize().unwrap()).unwrap();
    says(house.offline(NAME, &Want::Weights), &["model.safetensors is missing"]);
    // Nothing listens at that address.
    let nowhere = house.with(&[("HF_ENDPOINT", "http://127.0.0.1:1")], "hf://o/n", &Want::Weights);
    says(nowhere, &["127.0.0.1 does not answer", "hf://o/n was not fetched"]);
}

#[test]
fn a_revision_that_is_gone_is_not_taken_from_the_cache() {
    let house = House::new();
    house.hub.tag(ID, "v1", &small().commit());
    house.weights("hf://facebook/dinov2-small@v1").unwrap();
    house.hub.tag(ID, "v1", &"0".repeat(40));
    says(house.weights("hf://facebook/dinov2-small@v1"), &["no revision \"v1\""]);
}

#[test]
fn a_file_in_the_cache_that_is_cut_is_fetched_again() {
    let house = House::new();
    let file = house.weights(NAME).unwrap().path.join("model.safetensors");
    fs_err::OpenOptions::new().write(true).open(&file).unwrap().set_len(1000).unwrap();
    assert!(same(&house.weights(NAME).unwrap().path.join("model.safetensors"), &weights(0)));
}

#[test]
fn mirrors_that_say_names_alone_are_asked_for_the_hashes() {
    let house = House::new();
    house.hub.say_names_alone();
    house.hub.send_small_files_on();
    let model = house.weights(NAME).unwrap();
    let blob = |file: &str| fs_err::read_link(model.path.join(file)).unwrap().file_name().unwrap().len();
    assert_eq!((blob("model.safetensors"), blob("config.json")), (64, 40));
    house.hub.put(ID, small().file("model.safetensors", weights(9)));
    house.hub.fail("/blobs/", 2, Fault::Corrupt);
    says(house.weights(NAME), &["arrives damaged", "SHA-256"]);
}

#[test]
fn redirects_have_an_end() {
    let house = House::new();
    let around = format!("{}/facebook/dinov2-small/resolve/main/around", house.hub.endpoint());
    house.hub.fail("resolve", 100, Fault::Redirect(around));
    says(house.weights(NAME), &["redirects"]);
    let other = House::new();
    other.hub.fail("resolve", 100, Fault::Redirect("file:///etc/passwd".to_owned()));
    says(other.weights(NAME), &["no web server"]);
    // What a store's address holds beside its place may be a secret.
    let signed = House::new();
    let to = signed.hub.endpoint().replace("http://", "http://user:geheim@") + "/facebook/dinov2-small/resolve/main/around?token=geheim";
    signed.hub.fail("resolve", 100, Fault::Redirect(to));
    let error = signed.weights(NAME).unwrap_err().to_string();
    assert!(error.contains("redirects") && !error.contains("geheim"), "{error}");
}

#[test]
fn what_is_no_hub_is_said() {
    let house = House::new();
    house.hub.fail("/api/models", 1, Fault::BreakOff(0));
    house.weights(NAME).unwrap();
    let other = House::new();
    other.hub.fail("/api/models", 1, Fault::Status(200, vec![]));
    says(other.weights(NAME), &["does not answer as a hub", "HF_ENDPOINT"]);
    other.hub.fail("/api/models", 1, Fault::Status(418, vec![("X-Error-Message", "a teapot".to_owned())]));
    says(other.weights(NAME), &["418", "a teapot"]);
}

#[test]
fn a_licence_is_shown_once() {
    let house = House::new();
    let card = json!({"license": "other", "license_name": "dinov3-license", "license_link": "https://ai.example/dinov3-license"});
    house.hub.put("meta/dinov3", small().card(card));
    let licence = |name: &str| house.weights(name).unwrap().licence;
    assert_eq!(licence("hf://meta/dinov3").as_deref(), Some("dinov3-license, https://ai.example/dinov3-license"));
    assert_eq!(licence("hf://meta/dinov3"), None);
    house.hub.put("o/apache", small().card(json!({"license": ["apache-2.0", "mit"], "license_link": "LICENSE"})));
    let several = licence("hf://o/apache").unwrap();
    assert!(several.starts_with("apache-2.0, mit, http://") && several.ends_with("/LICENSE"), "{several}");
    assert_eq!(licence(NAME), None);
}

#[test]
fn two_at_once_fetch_once() {
    let house = House::new();
    house.hub.fail("/blobs/", 1, Fault::Stall(300_000));
    thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| house.weights(NAME).unwrap())).collect();
        for model in both.into_iter().map(|thread| thread.join().unwrap()) {
            assert!(same(&model.path.join("model.safetensors"), &weights(0)));
        }
    });
    // One request and, after the timeout, the rest: the other thread waited.
    let ranges: Vec<_> = house.hub.seen().into_iter().filter(|seen| seen.store).map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=300000-".to_owned())]);
}

#[test]
fn a_cache_that_may_only_be_read_serves() {
    use std::os::unix::fs::PermissionsExt as _;
    let house = House::new();
    let model = house.weights(NAME).unwrap();
    let set = |mode| {
        for entry in walkdir::WalkDir::new(house.cache.path()).into_iter().filter_map(Result::ok).filter(|entry| entry.file_type().is_dir())
        {
            fs_err::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    // Neither are there the notes that a fetch of ours leaves.
    fs_err::remove_dir_all(house.cached(".no_exist")).unwrap();
    fs_err::remove_dir_all(house.cached("refs")).unwrap();
    fs_err::remove_dir_all(house.cached(".dino")).unwrap();
    // Not even by a user who may write everywhere.
    for place in [".no_exist", "refs", ".dino"] {
        fs_err::write(house.cached(place), "").unwrap();
    }
    set(0o555);
    let outcome = house.weights(NAME).map(|model| model.path);
    set(0o755);
    assert_eq!(outcome.unwrap(), model.path);
}
