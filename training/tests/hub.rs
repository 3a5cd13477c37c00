//! Checkpoints by name: the golden ones as repositories of a hub on loopback, through the program itself.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::bundled_golden;
use dino_vision::model::Manifest;
use loopback_hub::{Access, Fault, LoopbackHub, Repository};
use serde_json::json;

fn repository(name: &str) -> Repository {
    Repository::of_folder(&bundled_golden().join("checkpoints").join(name))
}

fn start(hub: &LoopbackHub, home: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HF_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("NO_COLOR", "1").env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", home);
    command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn run(hub: &LoopbackHub, home: &Path, arguments: &[&str]) -> (Output, String) {
    let output = start(hub, home, arguments).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_checkpoint_is_exported_by_name_with_its_commit() {
    let (hub, work) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    let card = json!({"license": "other", "license_name": "dinov3-license", "license_link": "https://ai.example/licence"});
    let commit = hub.put("facebook/dinov2-small", repository("hf-dinov2").card(card));
    let export =
        |name: &str, out: &str| run(&hub, work.path(), &["export", "--checkpoint", name, "--out", work.path().join(out).to_str().unwrap()]);
    let (output, said) = export("hf://facebook/dinov2-small", "a");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let wanted = ["fetching model.safetensors", "licence of facebook/dinov2-small: dinov3-license, https://ai.example/licence", &commit];
    assert!(wanted.iter().all(|words| said.contains(words)), "{said}");
    let manifest = Manifest::load(&work.path().join("a")).unwrap();
    assert_eq!(manifest.source.hub, Some(format!("hf://facebook/dinov2-small@{commit}")));
    assert_eq!(manifest.source.file, "model.safetensors");

    // The same as from the folder itself.
    let plain = bundled_golden().join("checkpoints/hf-dinov2");
    let (output, said) = export(plain.to_str().unwrap(), "b");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let other = Manifest::load(&work.path().join("b")).unwrap();
    assert_eq!((&other.source.sha256, &other.files, &other.transform), (&manifest.source.sha256, &manifest.files, &manifest.transform));
    assert_eq!(other.source.hub, None);

    // The same weights are not exported again; in another precision, and other weights, they are.
    let written = || fs_err::metadata(work.path().join("a/manifest.json")).unwrap().modified().unwrap();
    let before = written();
    let out = work.path().join("a");
    let again = |name: &str, more: &[&str]| {
        run(
            &hub,
            work.path(),
            &[&["export", "--checkpoint", name, "--out", out.to_str().unwrap(), "--if-changed", "--unmeasured"], more].concat(),
        )
    };
    let (output, said) = again("hf://facebook/dinov2-small", &[]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("holds a model of these weights already") && written() == before, "{said}");
    // Where a file is cut, they are.
    fs_err::write(out.join("model.onnx"), "cut").unwrap();
    let (output, said) = again("hf://facebook/dinov2-small", &[]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(fs_err::metadata(out.join("model.onnx")).unwrap().len() > 1000);
    let (output, said) = again("hf://facebook/dinov2-small", &["--precision", "f32", "--precision", "int8"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(Manifest::load(&out).unwrap().files.len(), 2);
    hub.put("facebook/dinov3", repository("hf-dinov3-vit"));
    let (output, said) = again("hf://facebook/dinov3", &[]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(Manifest::load(&out).unwrap().source.hub.unwrap().starts_with("hf://facebook/dinov3@"));

    // Again, by its commit: from the cache, and the licence is not said again.
    hub.seen();
    let (output, said) = export(&format!("hf://facebook/dinov2-small@{commit}"), "c");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("licence"), "{said}");
    assert_eq!(hub.seen(), []);
}

#[test]
fn files_are_named_where_there_are_several() {
    let (hub, work) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("meta/dino", repository("pth-dino-backbone"));
    hub.put("meta/gated", repository("hf-dinov3-vit").access(Access::Gated));
    let out = work.path().join("model");
    let export = |name: &str| run(&hub, work.path(), &["export", "--heads", "4", "--checkpoint", name, "--out", out.to_str().unwrap()]);
    let (output, said) = export("hf://meta/dino");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("2 files of weights") && said.contains("hf://meta/dino/FILE"), "{said}");
    let (output, said) = export("hf://meta/dino/dino_vit_pretrain.pth");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(Manifest::load(&out).unwrap().source.hub.unwrap().ends_with("/dino_vit_pretrain.pth"));
    let (output, said) = export("hf://meta/gated");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is gated: accept its conditions at"), "{said}");
    let (output, said) = export("hf://dino");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("hf://OWNER/NAME[@REVISION][/FILE]"), "{said}");
}

#[test]
fn two_programs_at_once_fetch_once() {
    let (hub, work) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("o/n", repository("hf-dinov2"));
    // The first download breaks off: the process that holds the lock continues it, and the other waits.
    hub.fail("/blobs/", 1, Fault::BreakOff(1000));
    let out = |name: &str| work.path().join(name).display().to_string();
    let both = ["a", "b"].map(|name| start(&hub, work.path(), &["export", "--checkpoint", "hf://o/n", "--out", &out(name)]));
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ranges: Vec<_> = hub.seen().into_iter().filter(|seen| seen.store).map(|seen| seen.range).collect();
    assert_eq!(ranges, [None, Some("bytes=1000-".to_owned())]);
    let manifests = ["a", "b"].map(|name| Manifest::load(&work.path().join(name)).unwrap());
    assert_eq!(manifests[0], manifests[1]);
}

#[test]
fn a_run_goes_on_from_weights_by_name() {
    let (hub, work) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("o/n", repository("hf-dinov2"));
    let (data, out) = (work.path().join("data"), work.path().join("run"));
    fs_err::create_dir_all(&data).unwrap();
    for at in 0..6_u8 {
        let picture = image::RgbImage::from_fn(48, 48, |x, y| image::Rgb([40 * at, (5 * x) as u8, (5 * y) as u8]));
        picture.save(data.join(format!("{at}.png"))).unwrap();
    }
    let settings = "train --init hf://o/n --method dinov2 --out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 --local-crops-number 1 \
                    --batch-size 3 --epochs 2 --precision f32";
    let mut arguments: Vec<&str> = settings.split_whitespace().collect();
    arguments.extend(["--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let (output, said) = run(&hub, work.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("before the first step") && said.contains("the run "), "{said}");
    assert!(out.join("best.safetensors").is_file());
}

#[test]
fn a_backbone_is_evaluated_by_name() {
    let (hub, work) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("o/n", repository("hf-dinov2"));
    for (class, level) in [("dark", 20), ("light", 230)] {
        let folder = work.path().join("pictures").join(class);
        fs_err::create_dir_all(&folder).unwrap();
        for at in 0..3 {
            image::RgbImage::from_pixel(32, 32, image::Rgb([level + at, level, level])).save(folder.join(format!("{at}.png"))).unwrap();
        }
    }
    let pictures = work.path().join("pictures").display().to_string();
    let (output, said) = run(&hub, work.path(), &["knn", "--model", "hf://o/n", "--train", &pictures, "--val", &pictures, "--k", "1"]);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"k1\":{\"top1\":100.0"), "{said}");
}

#[test]
fn certificates_that_are_named_are_not_replaced_by_others() {
    let (hub, work) = (LoopbackHub::start(), tempfile::tempdir().unwrap());
    hub.put("facebook/dinov2-small", repository("hf-dinov2"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.args(["export", "--checkpoint", "hf://facebook/dinov2-small", "--out"]).arg(work.path().join("out"));
    command.env("NO_COLOR", "1").env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", work.path()).env("SSL_CERT_FILE", "/nowhere.pem");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("SSL_CERT_FILE names certificates that cannot be read"), "{said}");
    assert_eq!(hub.seen(), [], "nothing was asked");
}
