//! OpenVINO as a plug-in: the real one, on processors of every maker.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use crate::harness::{Server, cosine, file, program, root, tiny_model};

const PLUGIN: &str = "libonnxruntime_providers_openvino_plugin.so";

/// OpenVINO's plug-in, and what loads it on any processor; `None` for processors that it is not built for.
fn openvino() -> Option<(PathBuf, &'static Path)> {
    static ANY_VENDOR: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = root().join("tests/openvino/any_vendor.c");
        let out = folder.path().join("any_vendor.so");
        // What links Rust programs is there.
        let status = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(out).arg(source).arg("-ldl").status();
        assert!(status.unwrap().success());
        folder
    });
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return None;
    }
    let plugin = root().join(".cache/test-openvino").join(PLUGIN);
    assert!(plugin.is_file(), "{} is missing: run `make test-openvino`", plugin.display());
    Some((plugin, ANY_VENDOR.path()))
}

/// The program, which finds OpenVINO's plug-in.
fn command() -> Option<Command> {
    let (plugin, folder) = openvino()?;
    let mut command = program();
    command.env("OPENVINO_PLUGIN", plugin).env("DINO_OPENVINO_LIBRARY", folder.join("any_vendor.so"));
    Some(command)
}

#[test]
fn a_model_runs_on_openvino_as_on_the_cpu() {
    let Some(command) = command() else { return };
    let tiny = tiny_model();
    let openvino = Server::launch(command, &[tiny.to_str().unwrap()], &["--device", "openvino"]).when_ready();
    let model = openvino.get("/healthz").ok().json()["models"][0].clone();
    assert_eq!((&model["device"], &model["agreement"]["agrees"]), (&"openvino:CPU".into(), &true.into()), "{model}");
    for output in ["last_hidden_state", "attention", "keys"] {
        assert!(model["agreement"]["cosines"][output].as_f64().unwrap() >= 0.999, "{model}");
    }
    let metrics = openvino.get("/metrics").ok().text();
    assert!(
        metrics.contains(r#"dino_device_agreement{model="tiny-model",device="openvino:CPU",output="keys"} 0.99"#)
            || metrics.contains(r#"output="keys"} 1"#),
        "{metrics}"
    );

    let cpu = Server::start(&["--device", "cpu"]);
    assert!(cpu.get("/healthz").ok().json()["models"][0].get("agreement").is_none());
    for (query, picture) in [("", "photos/china.jpg"), ("?pooling=mean", "photos/flower.jpg"), ("?normalize=false", "photos/flower.jpg")] {
        let similar = cosine(&openvino.embed_with(query, &file(picture)), &cpu.embed_with(query, &file(picture)));
        assert!(similar > 0.999, "{picture} {query}: {similar}");
    }
    // Inputs of other sizes than the transform makes.
    for picture in ["photos/china.jpg", "photos/flower.jpg"] {
        let results = openvino.post("/segment?format=rle", "image/jpeg", &file(picture)).ok().json();
        assert!(results["results"][0]["masks"][0]["area"].as_u64().unwrap() > 0, "{results}");
    }
    openvino.post("/v1/models/tiny-model/reload", "application/json", b"").ok();
    assert_eq!(openvino.get("/healthz").ok().json()["models"][0]["device"], "openvino:CPU");
}

#[test]
fn auto_measures_what_is_there() {
    let Some(command) = command() else { return };
    let tiny = tiny_model();
    let server = Server::launch(command, &[tiny.to_str().unwrap()], &[]).when_ready();
    let device = server.get("/healthz").ok().json()["models"][0]["device"].clone();
    assert!(["cpu", "openvino:CPU"].contains(&device.as_str().unwrap()), "{device}");
    let log = server.log();
    assert!(log.contains("the fastest device was measured") && log.contains("openvino:CPU "), "{log}");
}

#[test]
fn a_device_that_is_not_there_ends_the_start_with_a_way_out() {
    let tiny = tiny_model();
    let refused = |mut command: Command, device: &str| {
        command.args(["serve", "--listen", "127.0.0.1:0", "--model", tiny.to_str().unwrap(), "--device", device]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{device}: {said}");
        assert!(said.contains("--device cpu"), "{said}");
        said
    };
    let mut nowhere = program();
    nowhere.env("DINO_OPENVINO_LIBRARY", "/nowhere/plugin.so");
    assert!(refused(nowhere, "openvino").contains("DINO_OPENVINO_LIBRARY names no file"));
    assert!(refused(program(), "plugin:/nowhere/plugin.so").contains("/nowhere/plugin.so: No such file"));
    let no_library = tiny.join("manifest.json");
    assert!(refused(program(), &format!("plugin:{}", no_library.display())).contains("is no plug-in for ONNX Runtime"));
    let Some((plugin, folder)) = openvino() else { return };
    let mut any_vendor = program();
    any_vendor.env("OPENVINO_PLUGIN", plugin);
    let said = refused(any_vendor, &format!("plugin:{}:9", folder.join("any_vendor.so").display()));
    assert!(said.contains("offers 2 devices: 0 (OpenVINOExecutionProvider on CPU, "), "{said}");
}

#[test]
fn a_plugin_is_named_by_its_library() {
    let Some((plugin, folder)) = openvino() else { return };
    let tiny = tiny_model();
    let mut command = program();
    command.env("OPENVINO_PLUGIN", plugin);
    let device = format!("plugin:{}", folder.join("any_vendor.so").display());
    let server = Server::launch(command, &[tiny.to_str().unwrap()], &["--device", &device, "--sessions", "2"]).when_ready();
    let model = server.get("/healthz").ok().json()["models"][0].clone();
    assert_eq!((&model["device"], &model["workers"]), (&format!("{device}:0").into(), &2.into()));
    assert_eq!(model["agreement"]["agrees"], true, "{model}");
    server.embed(&file("photos/china.jpg"));
}
