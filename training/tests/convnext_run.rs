//! A `ConvNeXt` from training to its evaluation, by the program's commands.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod runs;

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use dino_train::backbone::{Backbone, Pass};
use dino_train::kernels::matmul::Precision;
use dino_train::run::recipe::Recipe;
use dino_train::run::state::Stored;
use dino_train::weights::{Options, init};
use dino_vision::transform::Transform;
use image::{Rgb, RgbImage};
use ndarray::{ArrayD, IxDyn};
use runs::{assert_same, checkpoints, export, tensors, text, weights, with_defaults};

/// Two classes that differ in colour and pattern.
fn classes(folder: &Path) {
    for (class, name) in ["stripes", "spots"].into_iter().enumerate() {
        fs_err::create_dir_all(folder.join(name)).unwrap();
        for i in 0..6_u32 {
            let picture = RgbImage::from_fn(72, 66, |x, y| {
                let bright = if class == 0 { (x + 3 * i) / 4 % 2 == 0 } else { (x / 6 + y / 6 + i) % 2 == 0 };
                let value = if bright { 220 - 5 * i as u8 } else { 30 };
                if class == 0 { Rgb([value, 20, 60]) } else { Rgb([20, value, value]) }
            });
            picture.save(folder.join(name).join(format!("{i}.png"))).unwrap();
        }
    }
}

fn train(data: &Path, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--data").arg(data).arg("--out").arg(out);
    let settings = "--dim 16 --layer-scale 0.1 --drop-path-rate 0.2 --out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 \
                    --global-crops-size 64 --local-crops-size 32 --local-crops-number 2 --batch-size 4 --epochs 3 --warmup-epochs 1 \
                    --lr 0.02 --num-workers 1 --seed 5";
    with_defaults(&mut command, settings, more);
    command.output().unwrap()
}

const TINY: [&str; 2] = ["--arch", "convnext_tiny"];

/// Features of a run's newest checkpoint by the trainer's own arithmetic, of pictures `[n, 3, height, width]`.
fn features(run: &Path, pictures: &common::Tensors) -> Vec<ArrayD<f32>> {
    let checkpoint = checkpoints(run).pop().unwrap();
    let recipe: Recipe = Stored::describe(&checkpoint).unwrap().recipe;
    let backbone = Backbone::new(recipe.backbone(), &mut dino_train::data::loader::generator(9, 0, 0, 0), &Device::Cpu).unwrap();
    init::initialise(&backbone, &checkpoint, &Options::default(), &Transform::evaluation()).unwrap();
    let of = |pictures: &dino_train::weights::Tensor| {
        let pixels = Tensor::from_slice(&pictures.data, pictures.shape.as_slice(), &Device::Cpu).unwrap();
        let features = backbone.features(&[pixels], &mut Pass::Frozen).unwrap();
        ArrayD::from_shape_vec(IxDyn(features.dims()), features.flatten_all().unwrap().to_vec1().unwrap()).unwrap()
    };
    pictures.values().map(of).collect()
}

#[test]
fn a_convnext_is_trained_resumed_exported_and_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("data"));
    let output = train(&at("data"), &at("whole"), &TINY);
    assert!(output.status.success(), "{}", text(&output));

    // From the checkpoint of the first epoch the run goes on to the same bytes.
    let [first, ..] = &checkpoints(&at("whole"))[..] else { panic!("{}", text(&output)) };
    fs_err::create_dir(at("resumed")).unwrap();
    fs_err::copy(first, at("resumed").join(first.file_name().unwrap())).unwrap();
    let start = tensors(&at("resumed"), "");
    let output = train(&at("data"), &at("resumed"), &[&TINY[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert!(weights(&at("whole")) == weights(&at("resumed")), "the run went on to other weights");
    let end = tensors(&at("resumed"), "");
    for name in
        ["downsample_layers.0.0.weight", "downsample_layers.2.0.bias", "stages.2.8.dwconv.weight", "stages.3.0.gamma", "norm.weight"]
    {
        for side in ["student", "teacher"] {
            let name = format!("{side}.backbone.{name}");
            let of =
                |all: &[(String, Vec<f32>)]| all.iter().find(|(other, _)| *other == name).unwrap_or_else(|| panic!("{name}")).1.clone();
            assert_ne!(of(&start), of(&end), "{name} moves");
        }
    }

    // The exported graph computes what the trainer does.
    export(&at("whole"), &at("model"), &[]);
    let pictures = common::Tensors::from([("square".to_owned(), common::picture(64, 64)), ("wide".to_owned(), common::picture(32, 96))]);
    let mut session = common::session(&at("model"));
    for (picture, expected) in pictures.values().zip(features(&at("whole"), &pictures)) {
        common::assert_close(&common::run(&mut session, picture)["embedding"], &expected, "the exported graph");
    }

    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.args(["knn", "--k", "1", "--model"]).arg(at("model")).arg("--train").arg(at("data")).arg("--val").arg(at("data"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let figures: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert!((figures["k1"]["top1"].as_f64().unwrap() - 100.0).abs() < 1e-9, "each picture is its own neighbour: {said}");

    // Another run goes on from these weights, whose sizes need not be given; a rate of 0 leaves them as they are.
    let init =
        ["--init", at("whole").to_str().unwrap(), "--lr", "0", "--min-lr", "0", "--epochs", "1", "--warmup-epochs", "0"].map(str::to_owned);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-train"));
    command.arg("train").arg("--data").arg(at("data")).arg("--out").arg(at("onwards")).args(init);
    command.args("--out-dim 32 --head-hidden-dim 16 --head-bottleneck-dim 8 --weight-decay 0 --weight-decay-end 0".split_whitespace());
    command.args("--global-crops-size 64 --local-crops-size 32 --local-crops-number 2 --batch-size 4".split_whitespace());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the backbone is that of the checkpoint: convnext_tiny, dim 16, 18 blocks"), "{}", text(&output));
    for (found, expected) in features(&at("onwards"), &pictures).iter().zip(features(&at("whole"), &pictures)) {
        common::assert_close(found, &expected, "the weights that the run began with");
    }
}

#[test]
fn two_processes_train_a_convnext_as_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("data"));
    // Longer steps make differences of rounding large.
    let flags = ["--optimizer", "sgd", "--lr", "0.001", "--drop-path-rate", "0", "--epochs", "2"];
    let output = train(&at("data"), &at("whole"), &[&TINY[..], &flags].concat());
    assert!(output.status.success(), "{}", text(&output));
    let output = train(&at("data"), &at("halves"), &[&TINY[..], &flags, &["--batch-size", "2", "--processes", "2"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    assert_same(&at("halves"), &at("whole"));
}

#[test]
fn what_a_convnext_does_not_have_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    classes(&at("data"));
    for (flags, said) in [
        (&["--method", "dinov2"][..], "--method dinov2 are for ViTs"),
        (&["--layer-decay", "0.9"], "--layer-decay"),
        (&["--local-crops-size", "48"], "no multiple of 32"),
        (&["--dim", "20"], "multiple of 8"),
        (&["--activation-checkpointing"], "vision transformers"),
    ] {
        let output = train(&at("data"), &at("run"), &[&TINY[..], flags].concat());
        assert!(output.status.code() == Some(2) && text(&output).contains(said), "{flags:?}: {}", text(&output));
        assert!(!at("run").exists());
    }
}

#[test]
fn bf16_is_close_to_float32() {
    // Not every processor has such products.
    if !dino_train::kernels::matmul::has_bf16() {
        return;
    }
    let backbone = |precision: Precision| {
        let recipe: Recipe = toml::from_str("arch = \"convnext_tiny\"\ndim = 64\nlayer-scale = 1.0").unwrap();
        let dino_train::backbone::BackboneConfig::Convnext(config) = recipe.backbone() else { panic!("a ConvNeXt") };
        let config = dino_train::backbone::convnext::ConvnextConfig { precision, ..config };
        Backbone::new(config.into(), &mut dino_train::data::loader::generator(0, 0, 0, 0), &Device::Cpu).unwrap()
    };
    let pixels = common::picture(64, 64);
    let pixels = Tensor::from_slice(&pixels.data, pixels.shape.as_slice(), &Device::Cpu).unwrap();
    let of = |precision| {
        let features = backbone(precision).features(std::slice::from_ref(&pixels), &mut Pass::Frozen).unwrap();
        features.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (rounded, exact) = (of(Precision::Bf16), of(Precision::F32));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosine = dot(&rounded, &exact) / (dot(&rounded, &rounded) * dot(&exact, &exact)).sqrt();
    assert!(cosine > 0.999 && rounded != exact, "{cosine}");
}
