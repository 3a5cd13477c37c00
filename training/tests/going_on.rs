//! Runs that go on from the weights of others: what they measure, when they end, what they leave alone, and what they say.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod runs;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use dino_train::backbone::positions::rotary_periods;
use image::{Rgb, RgbImage};
use runs::{checkpoints, export, log, pictures, run, tensors, text, weights, with_defaults};

/// Pictures of classes that differ in colour.
fn classes(folder: &Path) {
    for class in 0..3_u32 {
        let folder = folder.join(format!("class-{class}"));
        fs_err::create_dir_all(&folder).unwrap();
        for i in 0..6 {
            let pixel = |x: u32, y: u32| Rgb([class as u8 * 80, 255 - class as u8 * 80, ((x * (i + 3) + y * 7) % 256) as u8]);
            RgbImage::from_fn(40 + i % 3, 44, pixel).save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
}

/// The weights to go on from: a run of this trainer, of a small ViT.
fn weights_of_others(folder: &Path) {
    pictures(&folder.join("first-data"), 12);
    let output = run(&folder.join("first-data"), &folder.join("first"), &["--epochs", "2"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// A run that goes on from them, whose sizes are not given.
fn go_on(folder: &Path, data: &str, out: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--init").arg(folder.join("first")).args(["--method", "dinov2"]);
    command.arg("--data").arg(folder.join(data)).arg("--out").arg(folder.join(out));
    let settings = "--out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 --local-crops-number 2 --batch-size 4 --epochs 3 --lr 0.02 \
                    --precision f32";
    with_defaults(&mut command, settings, more);
    command.output().unwrap()
}

/// Tensors of a network's backbone in the newest checkpoint.
fn backbone(run: &Path, network: &str) -> BTreeMap<String, Vec<f32>> {
    let prefix = format!("{network}.backbone.");
    tensors(run, &prefix).into_iter().map(|(name, values)| (name[prefix.len()..].to_owned(), values)).collect()
}

#[test]
fn a_run_from_weights_measures_them_first_and_says_whether_it_helped() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights_of_others(folder.path());
    classes(&at("data"));
    let output = go_on(folder.path(), "data", "run", &[]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "settings are those of --preset continue_dinov2",
        "the backbone is that of the checkpoint",
        "before the first step, on 4 pictures: k-NN",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let lines = log(&at("run"));
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["baseline"] == lines[0]["baseline"] && line["knn"]["top1"].is_number()), "{lines:?}");
    // The first epoch trains the heads alone, so that the teacher is what it was.
    assert_eq!(lines[0]["knn"], lines[0]["baseline"]);
    assert_eq!(
        said.matches("helped: k-NN top-1 went from").count() + said.matches("the run did not help: the best of 3").count(),
        1,
        "{said}"
    );
    assert!(said.contains("export it with dino-train export") || said.contains("export those weights"), "{said}");
    assert!(at("run/best.safetensors").is_file());
    let curves = fs_err::read_to_string(at("run/curves.svg")).unwrap();
    let report = fs_err::read_to_string(at("run/report.html")).unwrap();
    assert!(curves.contains("before the run") && report.contains("before the run") && report.contains("So far the run"));
    let (first, last) = (backbone(&at("first"), "teacher"), backbone(&at("run"), "teacher"));
    assert_eq!(first["cls_token"].len(), 24, "the sizes of the checkpoint");
    assert!(first.iter().any(|(name, values)| *values != last[name]), "behind its frozen epoch the backbone is trained");
}

/// DINOv2's releases, as Hugging Face has them: patches of 14, layer scale, registers.
#[test]
fn releases_of_dinov2_are_gone_on_with_and_their_best_teacher_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("data"), 8);
    for name in ["hf-dinov2", "hf-dinov2-registers"] {
        let release = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name);
        std::os::unix::fs::symlink(release, at("first")).unwrap();
        let output = go_on(folder.path(), "data", name, &["--epochs", "2"]);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("crops of one picture that find each other"), "{said}");
        fs_err::remove_file(at("first")).unwrap();
        export(&at(name).join("best.safetensors"), &at("model"), &[]);
    }
}

#[test]
fn a_backbone_stays_as_it_is_while_it_is_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights_of_others(folder.path());
    pictures(&at("data"), 12);
    let frozen = ["--epochs", "4", "--freeze-backbone-epochs", "3", "--keep-checkpoints", "9"];
    let output = go_on(folder.path(), "data", "run", &frozen);
    assert!(output.status.success(), "{}", text(&output));
    // The checkpoint behind the third epoch is the last with a frozen backbone.
    fs_err::remove_file(checkpoints(&at("run")).pop().unwrap()).unwrap();
    let first = backbone(&at("first"), "teacher");
    for network in ["teacher", "student"] {
        let held = backbone(&at("run"), network);
        // The position of CLS is part of its token from then on.
        for (name, values) in first.iter().filter(|(name, _)| !["cls_token", "pos_embed"].contains(&name.as_str())) {
            assert_eq!(values, &held[name], "{network} {name}");
        }
    }
    for name in ["cls_token", "pos_embed"] {
        assert_eq!(backbone(&at("run"), "student")[name], backbone(&at("run"), "teacher")[name], "{name}");
    }
    let heads = |network: &str| tensors(&at("run"), &format!("{network}.head."));
    assert_ne!(heads("student"), heads("teacher"), "the head is trained");
}

#[test]
fn a_run_that_stays_below_its_first_weights_ends_and_stays_ended() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights_of_others(folder.path());
    pictures(&at("data"), 16);
    // Steps that no weights survive.
    let harm =
        ["--lr", "9", "--layer-decay", "1", "--momentum-teacher", "0", "--warmup-epochs", "0", "--collapse-steps", "0", "--epochs", "10"];
    let output = go_on(folder.path(), "data", "run", &harm);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let lines = log(&at("run"));
    let baseline = lines[0]["baseline"]["agreement"].as_f64().unwrap();
    let below: Vec<bool> = lines.iter().map(|line| line["agreement"]["agreement"].as_f64().unwrap() < baseline).collect();
    assert!(lines.len() < 10 && below.ends_with(&[true; 5]), "{below:?}");
    assert!(said.contains("in 5 evaluations in a row (--stop-below)"), "{said}");
    // A job that is started again does not go on with it.
    let output = go_on(folder.path(), "data", "run", &[&harm[..], &["--resume", "auto"]].concat());
    assert!(output.status.success() && text(&output).contains("(--stop-below)"), "{}", text(&output));
    assert_eq!(log(&at("run")).len(), lines.len());
}

#[test]
fn adapters_are_merged_into_the_teacher_and_go_on_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights_of_others(folder.path());
    pictures(&at("data"), 12);
    let lora = ["--lora-rank", "3", "--freeze-backbone-epochs", "0", "--stop-below", "0"];
    for out in ["whole", "broken"] {
        let output = go_on(folder.path(), "data", out, &lora);
        assert!(output.status.success(), "{}", text(&output));
    }
    let (first, base) = (backbone(&at("first"), "teacher"), backbone(&at("whole"), "lora"));
    let (student, teacher) = (backbone(&at("whole"), "student"), backbone(&at("whole"), "teacher"));
    for name in ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"] {
        let name = |part: &str| format!("blocks.1.{name}.{part}");
        let weight = name("weight");
        assert_eq!(first[&weight], base[&weight], "the weights themselves stay");
        assert_ne!(student[&weight], base[&weight]);
        assert_ne!(teacher[&weight], base[&weight]);
        // The student's are W + B A.
        let (a, b) = (&base[&name("lora_a")], &base[&name("lora_b")]);
        let (inputs, rank) = (a.len() / 3, 3);
        for (place, (merged, weight)) in student[&weight].iter().zip(&base[&weight]).enumerate() {
            let (row, column) = (place / inputs, place % inputs);
            let delta: f32 = (0..rank).map(|at| b[row * rank + at] * a[at * inputs + column]).sum();
            assert!((merged - weight - delta).abs() < 1e-5, "{merged} {weight} {delta}");
        }
    }
    for name in ["cls_token", "pos_embed"] {
        assert_eq!(student[name], teacher[name], "{name}");
    }
    for name in ["norm.weight", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"] {
        assert_eq!(first[name], teacher[name], "{name}");
    }
    fs_err::remove_file(checkpoints(&at("broken")).pop().unwrap()).unwrap();
    let output = go_on(folder.path(), "data", "broken", &[&lora[..], &["--resume", "auto"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(weights(&at("whole")), weights(&at("broken")), "bit by bit");
    for (key, out) in [("teacher", "teacher-model"), ("student", "student-model")] {
        export(&at("whole"), &at(out), &["--key", key]);
    }
}

#[test]
fn adapters_leave_a_stem_of_convolutions_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("first-data"), 12);
    let output = run(&at("first-data"), &at("first"), &["--epochs", "1", "--stem", "conv"]);
    assert!(output.status.success(), "{}", text(&output));
    let lora = ["--epochs", "1", "--lora-rank", "2", "--freeze-backbone-epochs", "0", "--stop-below", "0"];
    let output = go_on(folder.path(), "first-data", "run", &lora);
    assert!(output.status.success(), "{}", text(&output));
    let first = backbone(&at("first"), "teacher");
    let stem: Vec<&String> = first.keys().filter(|name| name.contains("stem") || name.starts_with("patch_embed")).collect();
    assert!(stem.len() > 2, "{:?}", first.keys());
    for network in ["student", "teacher"] {
        let after = backbone(&at("run"), network);
        assert!(stem.iter().all(|name| after[*name] == first[*name]), "{network}");
    }
}

#[test]
fn adapters_need_weights_to_adapt() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pictures(&at("data"), 8);
    let output = run(&at("data"), &at("run"), &["--epochs", "1", "--lora-rank", "2", "--method", "dinov2", "--resume", "auto"]);
    let said = text(&output);
    assert!(
        output.status.code() == Some(2) && said.contains("--lora-rank and --freeze-backbone-epochs keep the weights of --init"),
        "{said}"
    );
}

#[test]
fn two_processes_go_on_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    weights_of_others(folder.path());
    pictures(&at("data"), 12);
    let more = ["--lora-rank", "2", "--centering", "centering", "--stop-below", "5"];
    for (out, flags) in [("one", &["--batch-size", "4"][..]), ("two", &["--batch-size", "2", "--processes", "2"])] {
        let output = go_on(folder.path(), "data", out, &[&more[..], flags].concat());
        assert!(output.status.success(), "{}", text(&output));
    }
    runs::assert_same(&at("two"), &at("one"));
}

#[test]
fn weights_with_gates_and_rotary_positions_are_trained_further() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("data"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints/hf-dinov3-vit-gated");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--init").arg(&golden).args(["--method", "dinov2", "--rope-rescale-coords", "2"]);
    command.arg("--data").arg(at("data")).arg("--out").arg(at("run"));
    let settings = "--out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 --local-crops-number 2 --batch-size 4 --epochs 2 --lr 0.02 \
                    --global-crops-size 64 --local-crops-size 32 --precision f32";
    with_defaults(&mut command, settings, &[]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let student = backbone(&at("run"), "student");
    for network in [&student, &backbone(&at("run"), "teacher")] {
        assert_eq!(network["rope_embed.periods"], rotary_periods(100.0, 2), "periods stay as they are");
        assert!(network["blocks.0.attn.qkv.bias"][32..64].iter().all(|bias| *bias == 0.0), "keys have no biases");
        assert!(network.contains_key("storage_tokens") && network.contains_key("blocks.1.mlp.w12.weight"));
    }
    assert!(student["blocks.0.attn.qkv.bias"][..32].iter().any(|bias| *bias != 0.0), "queries have");
    export(&at("run"), &at("model"), &[]);
    let manifest: serde_json::Value = serde_json::from_str(&fs_err::read_to_string(at("model/manifest.json")).unwrap()).unwrap();
    assert_eq!((manifest["architecture"].as_str(), manifest["registers"].as_u64()), (Some("dinov3-vit"), Some(4)));
}
