//! Backbones that start from checkpoints of public releases.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use dino_train::backbone::positions::{PositionCode, RotaryJitter};
use dino_train::backbone::resnet::{Kind, ResnetConfig};
use dino_train::backbone::vit::VitConfig;
use dino_train::backbone::{Backbone, BackboneConfig, Pass};
use dino_train::kernels::matmul::Precision;
use dino_train::weights::{Options, init};
use dino_vision::transform::Transform;
use golden::{Golden, TOLERANCE, compare};
use rand::SeedableRng;

fn folder(name: &str) -> PathBuf {
    golden::folder().join("checkpoints").join(name)
}

/// What the release's own code answers.
fn expected(name: &str) -> Golden {
    Golden::load(&format!("checkpoints/{name}/expected.safetensors"))
}

fn fresh(config: impl Into<BackboneConfig>) -> Backbone {
    Backbone::new(config.into(), &mut rand_chacha::ChaCha8Rng::seed_from_u64(0), &Device::Cpu).unwrap()
}

/// Sizes of a golden transformer, read from what is expected of it and from its patch embedding.
fn vit(name: &str, expected: &Golden) -> VitConfig {
    let dino_train::weights::Backbone::Vit(vit) =
        dino_train::weights::load(&folder(name), &Options { heads: Some(4), ..Options::default() }).unwrap().backbone
    else {
        panic!("{name} is no transformer")
    };
    let side = expected.get("native.input").dim(3).unwrap();
    let positions = match init::rotary_base(&vit).unwrap() {
        Some(base) => PositionCode::Rotary { base, jitter: RotaryJitter::default() },
        None => PositionCode::Learned,
    };
    VitConfig {
        img_size: side,
        gated: init::gated(&vit).unwrap(),
        positions,
        registers: vit.registers(),
        patch_size: vit.patch_size,
        dim: vit.dim,
        depth: vit.blocks.len(),
        heads: expected.get("native.attention").dim(1).unwrap(),
        ..VitConfig::default()
    }
}

const RESNET: ResnetConfig = ResnetConfig { kind: Kind::Bottleneck, units: [2, 1, 1, 2], width: 8, precision: Precision::F32 };

fn resnet_of(name: &str) -> ResnetConfig {
    let dino_train::weights::Backbone::Resnet(resnet) = dino_train::weights::load(&folder(name), &Options::default()).unwrap().backbone
    else {
        panic!("{name} is no ResNet")
    };
    let units: Vec<usize> = resnet.stages.iter().map(Vec::len).collect();
    ResnetConfig { units: units.try_into().unwrap(), width: resnet.stem.kernel.weight.shape[0], ..RESNET }
}

#[test]
fn golden_transformers_answer_as_their_checkpoints() {
    for name in ["pth-dino-backbone", "pth-dino-full-checkpoint", "hf-dino-vit"] {
        let expected = expected(name);
        let backbone = fresh(vit(name, &expected));
        init::initialise(&backbone, &folder(name), &Options::default(), &Transform::evaluation()).unwrap();
        let tokens = backbone.vit().unwrap().tokens(&expected.get("native.input")).unwrap();
        compare(&tokens, &expected.get("native.tokens"), TOLERANCE).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn golden_transformers_with_gates_or_rotary_positions_answer_as_their_checkpoints() {
    for (name, sizes) in [
        ("hf-dinov2-swiglu", &["native"][..]),
        ("hf-dinov3-vit", &["native", "small", "wide"]),
        ("hf-dinov3-vit-gated", &["native", "small", "wide"]),
    ] {
        let expected = expected(name);
        let backbone = fresh(vit(name, &expected));
        init::initialise(&backbone, &folder(name), &Options::default(), &Transform::evaluation()).unwrap();
        for size in sizes {
            let tokens = backbone.vit().unwrap().tokens(&expected.get(&format!("{size}.input"))).unwrap();
            compare(&tokens, &expected.get(&format!("{size}.tokens")), TOLERANCE).unwrap_or_else(|e| panic!("{name}, {size}: {e}"));
        }
    }
}

#[test]
fn a_backbone_of_another_mlp_or_other_positions_is_refused_with_what_to_give() {
    let name = "hf-dinov3-vit-gated";
    let native = vit(name, &expected(name));
    let refused = |config: VitConfig| {
        init::initialise(&fresh(config), &folder(name), &Options::default(), &Transform::evaluation()).unwrap_err().to_string()
    };
    let plain = refused(VitConfig { gated: None, ..native });
    assert!(plain.contains("--ffn-layer swiglu --ffn-hidden 128"), "{plain}");
    let learned = refused(VitConfig { positions: PositionCode::Learned, ..native });
    assert!(learned.contains("--pos-embed rope --rope-base 100"), "{learned}");
}

#[test]
fn golden_residual_networks_answer_as_their_checkpoints() {
    let name = "pth-dino-resnet";
    let expected = expected(name);
    let backbone = fresh(resnet_of(name));
    init::initialise(&backbone, &folder(name), &Options::default(), &Transform::evaluation()).unwrap();
    for size in ["native", "wide"] {
        let features = backbone.features(&[expected.get(&format!("{size}.input"))], &mut Pass::Frozen).unwrap();
        compare(&features, &expected.get(&format!("{size}.embedding")), TOLERANCE).unwrap_or_else(|e| panic!("{size}: {e}"));
    }
}

#[test]
fn a_residual_network_is_read_as_export_reads_it() {
    let backbone = fresh(resnet_of("pth-dino-resnet"));
    let store = dino_train::weights::open(&folder("pth-dino-resnet").join("dino_resnet_pretrain.pth")).unwrap();
    let work = tempfile::tempdir().unwrap();
    let mut tensors: std::collections::HashMap<String, Tensor> = store
        .names()
        .filter(|name| !name.ends_with("num_batches_tracked"))
        .map(|name| (format!("student_ema.{name}"), store.read(name).unwrap()))
        .map(|(name, tensor)| (name, Tensor::from_vec(tensor.data, tensor.shape, &Device::Cpu).unwrap()))
        .collect();
    let gate = Tensor::zeros(8, candle_core::DType::F32, &Device::Cpu).unwrap();
    tensors.insert("student_ema.layer1.0.gate.weight".to_owned(), gate.clone());
    tensors.insert("other.layer1.0.conv1.weight".to_owned(), gate);
    candle_core::safetensors::save(&tensors, work.path().join("model.safetensors")).unwrap();
    let options =
        |prefix: &str, ignore: &str| Options { prefix: Some(prefix.to_owned()), ignore: vec![ignore.to_owned()], ..Options::default() };
    let from =
        |options: &Options| init::initialise(&backbone, work.path(), options, &Transform::evaluation()).map_err(|error| error.to_string());
    assert!(from(&Options { prefix: Some("student_ema".to_owned()), ..Options::default() }).unwrap_err().contains("layer1.0.gate.weight"));
    assert!(from(&options("student_ema", "nosuch")).unwrap_err().contains("--ignore nosuch"));
    from(&options("student_ema", "layer1.0.gate")).unwrap();
    fs_err::write(work.path().join("config.json"), r#"{"architecture": "resnetblur50"}"#).unwrap();
    assert!(from(&options("student_ema", "layer1.0.gate")).unwrap_err().contains("resnetblur50"));
}

#[test]
fn positions_are_resampled_to_the_pictures_of_the_run() {
    let name = "pth-dino-backbone";
    let expected = expected(name);
    let native = vit(name, &expected);
    let side = expected.get("small.input").dim(3).unwrap();
    let backbone = fresh(VitConfig { img_size: side, ..native });
    let notes = init::initialise(&backbone, &folder(name), &Options::default(), &Transform::evaluation()).unwrap();
    assert!(notes.iter().any(|note| note.contains("resampled")), "{notes:?}");
    // At the size of the run the table needs no resampling, and gives what the release gives there.
    let tokens = backbone.vit().unwrap().tokens(&expected.get("small.input")).unwrap();
    compare(&tokens, &expected.get("small.tokens"), TOLERANCE).unwrap();
}

#[test]
fn what_does_not_fit_is_named_and_changes_nothing() {
    let name = "pth-dino-backbone";
    let expected = expected(name);
    let native = vit(name, &expected);
    let refused = |backbone: &Backbone, name: &str| {
        let before: Vec<Tensor> = backbone.groups().iter().map(|group| group.var().copy().unwrap()).collect();
        let said = init::initialise(backbone, &folder(name), &Options::default(), &Transform::evaluation()).unwrap_err().to_string();
        for (group, before) in backbone.groups().iter().zip(&before) {
            assert_eq!(golden::values(group.var()), golden::values(before));
        }
        said
    };
    let deeper = refused(&fresh(VitConfig { depth: native.depth + 1, ..native }), name);
    assert!(deeper.contains(&format!("missing: blocks.{}.attn.qkv.weight", native.depth)), "{deeper}");
    let shallower = refused(&fresh(VitConfig { depth: native.depth - 1, ..native }), name);
    assert!(shallower.contains(&format!("extra: blocks.{}.attn.qkv.weight", native.depth - 1)), "{shallower}");
    let wider = refused(&fresh(VitConfig { dim: 2 * native.dim, ..native }), name);
    assert!(wider.contains("wrong shape: patch_embed.proj.weight is"), "{wider}");
    assert!(refused(&fresh(native), "pth-dino-resnet").contains("--arch resnet18"));
    assert!(refused(&fresh(native), "hf-dinov2-registers").contains("register tokens"));
    let resnet = resnet_of("pth-dino-resnet");
    assert!(refused(&fresh(resnet), name).contains("holds no ResNet"));
    let narrower = refused(&fresh(ResnetConfig { width: resnet.width / 2, ..resnet }), "pth-dino-resnet");
    assert!(narrower.contains("wrong shape: bn1.running_mean"), "{narrower}");
}
