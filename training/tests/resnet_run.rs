//! A residual network from training to its evaluation, by the program's commands.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dino-train")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Two classes that differ in colour and pattern.
fn pictures(folder: &Path) {
    for (class, name) in ["stripes", "spots"].into_iter().enumerate() {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        for i in 0..6_u32 {
            let picture = RgbImage::from_fn(48, 40, |x, y| {
                let bright = if class == 0 { (x + 3 * i) / 4 % 2 == 0 } else { (x / 6 + y / 6 + i) % 2 == 0 };
                let value = if bright { 220 - 5 * i as u8 } else { 30 };
                if class == 0 { Rgb([value, 20, 60]) } else { Rgb([20, value, value]) }
            });
            picture.save(folder.join(name).join(format!("{i}.png"))).unwrap();
        }
    }
}

const SETTINGS: &str = "--arch resnet18 --dim 16 --optimizer sgd --use_bn_in_head true --lr 0.1 --weight_decay 1e-4 --weight_decay_end 1e-4 \
     --global_crops_scale 0.14 1. --local_crops_scale 0.05 0.14 --out_dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 \
     --global-crops-size 48 --local-crops-size 24 --local_crops_number 2 --batch_size_per_gpu 4 --epochs 3 --warmup_epochs 1 \
     --dist_url env:// --local_rank 0 --use_fp16 false --num_workers 1";

fn train(data: &Path, out: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["train", "--data_path", data.to_str().unwrap(), "--output_dir", out.to_str().unwrap()];
    arguments.extend(SETTINGS.split_whitespace());
    arguments.extend(more);
    run(&arguments)
}

fn checkpoints(out: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("checkpoint-")).collect();
    found.sort();
    found
}

/// All tensors of a checkpoint.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
    all.sort();
    all
}

#[test]
fn a_resnet_is_trained_resumed_exported_and_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let (data, whole, resumed) = (folder.path().join("data"), folder.path().join("whole"), folder.path().join("resumed"));
    pictures(&data);
    let output = train(&data, &whole, &[]);
    assert!(output.status.success(), "{}", text(&output));

    // From the checkpoint of the first epoch the run goes on to the same bytes.
    let [first, .., last] = &checkpoints(&whole)[..] else { panic!("{}", text(&output)) };
    std::fs::create_dir(&resumed).unwrap();
    std::fs::copy(first, resumed.join(first.file_name().unwrap())).unwrap();
    let output = train(&data, &resumed, &["--resume"]);
    assert!(output.status.success(), "{}", text(&output));
    let (want, got) = (tensors(last), tensors(checkpoints(&resumed).last().unwrap()));
    assert_eq!(want.len(), got.len());
    for ((name, want), (_, got)) in want.iter().zip(&got) {
        assert!(want == got, "{name} differs after the run went on");
    }
    let start = tensors(first);
    for name in ["teacher.backbone.bn1.running_mean", "student.head.mlp.1.running_var", "optimizer.first.backbone.layer4.1.conv2.weight"] {
        let of =
            |tensors: &[(String, Vec<u8>)]| tensors.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{name}")).1.clone();
        assert_ne!(of(&start), of(&want), "{name} moves");
    }

    let model = folder.path().join("model");
    let output = run(&["export", "--checkpoint", whole.to_str().unwrap(), "--out", model.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    let data = data.to_str().unwrap();
    let output = run(&["knn", "--model", model.to_str().unwrap(), "--train", data, "--val", data, "--k", "1"]);
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let figures: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!((figures["k1"]["top1"].as_f64().unwrap() - 100.0).abs() < 1e-9, "each picture is its own neighbour: {said}");
}

#[test]
fn two_processes_train_a_resnet_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data);
    let changed = |settings: &[(&str, &str)]| settings.iter().fold(SETTINGS.to_owned(), |all, (from, to)| all.replace(from, to));
    let losses = |name: &str, settings: &str| {
        let out = folder.path().join(name);
        let mut arguments = vec!["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
        arguments.extend(settings.split_whitespace());
        let output = run(&arguments);
        assert!(output.status.success(), "{}", text(&output));
        let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let whole = losses("whole", SETTINGS);
    let halves = losses("halves", &changed(&[("--batch_size_per_gpu 4", "--batch_size_per_gpu 2 --processes 2"), (" --local_rank 0", "")]));
    assert!(whole.len() == 3 && whole.iter().zip(&halves).all(|(a, b)| (a - b).abs() < 1e-4 * a), "{halves:?}, not {whole:?}");
}

#[test]
fn another_optimiser_or_a_head_without_norms_cannot_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data);
    assert!(train(&data, &out, &[]).status.success());
    let changed = SETTINGS.replace("--optimizer sgd", "--optimizer lars");
    let mut arguments = vec!["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap(), "--resume"];
    arguments.extend(changed.split_whitespace());
    let output = run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("--optimizer"), "{}", text(&output));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let refused = |more: &[&str]| {
        let output = run(&[&["train", "--data", data, "--out", "nowhere"], more].concat());
        assert!(!output.status.success());
        (output.status.code(), text(&output))
    };
    let (code, said) = refused(&["--arch", "xcit_small_12_p16"]);
    assert!(code == Some(2) && said.contains("xcit_small_12_p16 is not supported") && said.contains("resnet50"), "{said}");
    let (_, said) = refused(&["--dist_url", "tcp://localhost:1"]);
    assert!(said.contains("MASTER_ADDR"), "{said}");
    let (_, said) = refused(&["--arch", "resnet50", "--heads", "3"]);
    assert!(said.contains("--heads"), "{said}");
    let (code, _) = refused(&["--use_fp16", "true", "--precision", "f32"]);
    assert_eq!(code, Some(2), "two words for one setting");
}

#[test]
fn a_preset_comes_before_the_file_and_the_file_before_flags() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data);
    let config = folder.path().join("own.toml");
    std::fs::write(&config, "dim = 32\nepochs = 2\nuse_fp16 = false\nout_dim = 48\n").unwrap();
    let flags = "--preset resnet50 --epochs 1 --warmup-epochs 0 --batch-size 4 --global-crops-size 32 --local-crops-size 16 \
                 --local-crops-number 1 --head-hidden-dim 16 --head-bottleneck-dim 8 --num-workers 1";
    let mut arguments =
        vec!["train", "--data", data.to_str().unwrap(), "--out", out.to_str().unwrap(), "--config", config.to_str().unwrap()];
    arguments.extend(flags.split_whitespace());
    let output = run(&arguments);
    assert!(output.status.success(), "{}", text(&output));
    let bytes = std::fs::read(checkpoints(&out).pop().unwrap()).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let description: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["dino"]).unwrap();
    let recipe = &description["recipe"];
    assert_eq!(recipe["arch"], "resnet50", "of the preset");
    assert_eq!(recipe["optimizer"], "sgd", "of the preset");
    assert_eq!(recipe["dim"], 32, "of the file");
    assert_eq!(recipe["out-dim"], 48, "of the file, over the preset");
    assert_eq!(recipe["epochs"], 1, "of the flags, over both");
}
