//! Fine-tuning as a program: it learns, goes on as if it had not stopped, and writes what export and the server read.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use dino_train::kernels::matmul::Precision;
use dino_train::weights::{self, Backbone, init};
use dino_vision::head::LinearHead;
use image::{Rgb, RgbImage};
use safetensors::SafeTensors;
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(path)
}

/// The same weights as variables compute what the exported graph computes, at another size and with register tokens at their own.
#[test]
fn a_loaded_backbone_computes_what_its_export_computes() {
    let options = || weights::Options { heads: Some(4), ..Default::default() };
    let mut with_registers = 0;
    for entry in fs_err::read_dir(golden("")).unwrap() {
        let mut path = entry.unwrap().path();
        if path.ends_with("pth-dino-backbone") {
            path.push("dino_vit_pretrain.pth");
        }
        let Ok(loaded) = weights::load(&path, &options()) else { continue };
        let Backbone::Vit(vit) = loaded.backbone else { continue };
        let is_dino = path.ends_with("dino_vit_pretrain.pth");
        if !is_dino && vit.registers() == 0 {
            continue;
        }
        let registers = vit.registers();
        let backbone = init::vit(vit, 0.1, Precision::F32, &Device::Cpu, &mut Vec::new()).unwrap();
        with_registers += usize::from(registers > 0);
        let (patch, own) = (backbone.config().patch_size, backbone.config().img_size);
        let (height, width) = if is_dino { (3 * patch, 6 * patch) } else { (own, own) };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("model");
        dino_train::export::export(&path, &out, &dino_train::export::Options { checkpoint: options(), ..Default::default() }).unwrap();
        let model = dino_vision::model::Model::open(&out).unwrap();
        let mut session = model.sessions(&dino_vision::model::SessionOptions::default(), 1).unwrap().remove(0);
        let pixels = ndarray::Array4::from_shape_fn((1, 3, height, width), |(_, c, y, x)| {
            ((c * 7919 + y * 104_729 + x * 1_299_709) % 1009) as f32 / 252.0 - 2.0
        });
        let expected = session.run(pixels.view()).unwrap().last_hidden_state.unwrap();
        let input = Tensor::from_vec(pixels.into_raw_vec_and_offset().0, (1, 3, height, width), &Device::Cpu).unwrap();
        let found: Vec<f32> = backbone.tokens(&input).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(found.len(), expected.len(), "{}", path.display());
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-4 + 1e-4 * expected.abs(), "{}: {found}, not {expected}", path.display());
        }
    }
    assert!(with_registers > 0, "the golden checkpoints hold a backbone with registers");
}

fn finetune(train: &Path, val: &Path, out: &Path, more: &[&str]) -> Output {
    finetune_from(&golden("pth-dino-backbone/dino_vit_pretrain.pth"), "4", train, val, out, more)
}

fn finetune_from(model: &Path, heads: &str, train: &Path, val: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("finetune").arg("--model").arg(model).args(["--heads", heads]);
    command.arg("--train").arg(train).arg("--val").arg(val).arg("--out").arg(out);
    command.args(["--batch-size", "4", "--lr", "0.06", "--epochs", "4", "--warmup-epochs", "1", "--mixup", "0.2"]).args(more);
    command.output().unwrap()
}

fn succeed(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap()
}

/// Classes that differ in colour.
fn pictures(folder: &Path, per_class: u32) {
    for (number, class) in (0..).zip(["a", "b", "c"]) {
        fs_err::create_dir_all(folder.join(class)).unwrap();
        for i in 0..per_class {
            let picture =
                RgbImage::from_fn(40 + i % 3, 44, |x, y| Rgb([number * 80, 255 - number * 80, ((x * (i + 3) + y * 7) % 256) as u8]));
            picture.save(folder.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
}

#[test]
fn a_run_learns_goes_on_exactly_and_ends_in_a_model_with_its_head() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (train, val) = (at("train"), at("val"));
    pictures(&train, 5);
    pictures(&val, 2);
    fs_err::write(train.join("a/text.png"), "text").unwrap();
    let figures = succeed(&finetune(&train, &val, &at("whole"), &[]));
    assert!(figures["top1"].as_f64().unwrap() >= 60.0, "three colours told apart: {figures}");

    let checkpoint = |run: &str, number: usize| at(run).join(format!("checkpoint-{number:08}.safetensors"));
    // As if it had been killed after the third epoch.
    succeed(&finetune(&train, &val, &at("broken"), &[]));
    fs_err::remove_file(checkpoint("broken", 4)).unwrap();
    assert_eq!(finetune(&train, &val, &at("broken"), &[]).status.code(), Some(1), "a run is not begun over another");
    let refused = finetune(&train, &val, &at("broken"), &["--resume", "--seed", "3"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("other settings"));
    assert_eq!(succeed(&finetune(&train, &val, &at("broken"), &["--resume"])), figures);
    let bytes = |run: &str| fs_err::read(checkpoint(run, 4)).unwrap();
    let tensors = |bytes: &[u8]| {
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        let mut all: Vec<_> = tensors.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect();
        all.sort();
        all
    };
    assert_eq!(tensors(&bytes("whole")), tensors(&bytes("broken")));
    let log = fs_err::read_to_string(at("broken").join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 4, "one line for each epoch");

    // A short run need not know of the warm-up that comes with the settings.
    let mut short = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    short.arg("finetune").arg("--model").arg(golden("pth-dino-backbone/dino_vit_pretrain.pth")).args(["--heads", "4"]);
    short.arg("--train").arg(&train).arg("--val").arg(&val).arg("--out").arg(at("short"));
    let short = short.args(["--batch-size", "4", "--epochs", "1", "--resume", "auto"]).output().unwrap();
    succeed(&short);
    assert!(String::from_utf8_lossy(&short.stderr).contains("the warm-up is cut from 5 epochs to 0, because the run has 1"));

    let model = dino_vision::model::Model::open(&at("whole/model")).unwrap();
    let head = LinearHead::load(&at("whole/model/heads/finetuned")).unwrap();
    head.check_model(model.manifest(), &model.fingerprint(dino_vision::embedding::Pooling::Cls)).unwrap();
    assert_eq!(head.description().classes, ["a", "b", "c"]);
}

/// The checkpoint as a version wrote it that did not note what a run began with.
fn forget_start(checkpoint: &Path) {
    let bytes = fs_err::read(checkpoint).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let mut description: Value = serde_json::from_str(&metadata["dino"]).unwrap();
    assert!(description["progress"].as_object_mut().unwrap().remove("start").is_some());
    metadata.insert("dino".to_owned(), description.to_string());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let rewritten = safetensors::serialize(tensors.iter(), Some(metadata)).unwrap();
    fs_err::write(checkpoint, rewritten).unwrap();
}

#[test]
fn a_run_goes_on_with_the_network_that_it_began_with_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (train, val, out) = (at("train"), at("val"), at("run"));
    pictures(&train, 2);
    pictures(&val, 1);
    let model = golden("pth-dino-backbone/dino_vit_pretrain.pth");
    let figures = succeed(&finetune(&train, &val, &out, &[]));
    let checkpoint = |number: usize| out.join(format!("checkpoint-{number:08}.safetensors"));
    // Another network of the same sizes.
    let other = at("other.safetensors");
    fs_err::copy(checkpoint(4), &other).unwrap();
    fs_err::remove_file(checkpoint(4)).unwrap();
    let refused = |model: &Path, heads: &str, more: &[&str], words: &[&str]| {
        let output = finetune_from(model, heads, &train, &val, &out, &[&["--resume"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!checkpoint(4).exists());
    };
    refused(&model, "2", &[], &["another --heads (4 -> 2)", "give the old one"]);
    refused(&other, "4", &[], &["another --model"]);
    refused(&model, "4", &["--mean", "0.5,0.5,0.5"], &["--mean", "give the old one"]);
    // The heads and the transform were always noted.
    forget_start(&checkpoint(3));
    refused(&model, "2", &[], &["another --heads (4 -> 2)"]);
    assert_eq!(succeed(&finetune(&train, &val, &out, &["--resume"])), figures);
    // From here on it is known.
    let output = finetune_from(&other, "4", &train, &val, &out, &["--resume"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("another --model"));
}
