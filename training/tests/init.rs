//! Backbones that start from checkpoints of public releases.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod golden;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use dino_train::backbone::convnext::{Convnext, ConvnextConfig};
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

/// That of `tests/data/convnext`.
const CONVNEXT: ConvnextConfig =
    ConvnextConfig { depths: [1, 1, 2, 1], dims: [8, 12, 16, 24], drop_path: 0.0, layer_scale: Some(1e-6), precision: Precision::F32 };

fn initialised(config: ConvnextConfig, path: &Path) -> Result<Convnext, String> {
    let backbone = fresh(config);
    let read = init::initialise(&backbone, path, &Options::default(), &Transform::evaluation());
    read.map_err(|error| error.to_string())?;
    let Backbone::Convnext(convnext) = backbone else { panic!("a ConvNeXt") };
    Ok(convnext)
}

fn on_cpu(tensor: &common::Tensors, name: &str) -> Tensor {
    let tensor = &tensor[name];
    Tensor::from_slice(&tensor.data, tensor.shape.as_slice(), &Device::Cpu).unwrap()
}

fn assert_convnext(convnext: &Convnext, expected: &common::Tensors, layout: &str) {
    for size in ["whole", "tall"] {
        let input = on_cpu(expected, &format!("{size}.input"));
        let embedding = convnext.features(std::slice::from_ref(&input), &mut Pass::Frozen).unwrap();
        let map = convnext.feature_map(&input, &mut Pass::Frozen).unwrap().permute((0, 3, 1, 2)).unwrap();
        for (found, output) in [(embedding, "embedding"), (map, "feature_map")] {
            compare(&found, &on_cpu(expected, &format!("{size}.{output}")), TOLERANCE)
                .unwrap_or_else(|e| panic!("{layout}, {size}.{output}: {e}"));
        }
    }
}

#[test]
fn convnexts_of_every_layout_answer_as_transformers_and_keep_their_layer_scales() {
    let expected = common::convnext::expected();
    assert_convnext(&initialised(CONVNEXT, &common::convnext::folder()).unwrap(), &expected, "folder");
    let own = common::convnext::renamed(common::convnext::meta);
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("weights.safetensors");
    for (layout, mut tensors) in common::convnext::releases() {
        if layout == "dinov3-convnext-pth" {
            // Meta's module names its final norm twice.
            tensors.extend(["weight", "bias"].map(|part| (format!("norms.3.{part}"), tensors[&format!("norm.{part}")].clone())));
        }
        common::write(&file, &tensors, &[]);
        let convnext = initialised(CONVNEXT, &file).unwrap();
        assert_convnext(&convnext, &expected, layout);
        for group in convnext.groups() {
            let flat = group.flat(false);
            for (index, entry) in group.entries().iter().enumerate() {
                let name = entry.name.strip_prefix("backbone.").unwrap();
                assert_eq!(golden::values(&group.view(&flat, index).unwrap()), own[name].data, "{layout}: {name}");
            }
        }
    }
    // Without layer scales those of the run are 1.
    let mut unscaled = own;
    let folded: Vec<String> = unscaled.keys().filter_map(|name| Some(name.strip_suffix(".gamma")?.to_owned())).collect();
    for block in folded {
        let gamma = unscaled.remove(&format!("{block}.gamma")).unwrap();
        for part in ["weight", "bias"] {
            let tensor = unscaled.get_mut(&format!("{block}.pwconv2.{part}")).unwrap();
            let columns = tensor.data.len() / gamma.data.len();
            for (row, factor) in tensor.data.chunks_mut(columns).zip(&gamma.data) {
                for value in row.iter_mut() {
                    *value *= factor;
                }
            }
        }
    }
    common::write(&file, &unscaled, &[]);
    for layer_scale in [None, Some(1e-6)] {
        assert_convnext(&initialised(ConvnextConfig { layer_scale, ..CONVNEXT }, &file).unwrap(), &expected, "folded");
    }
}

#[test]
fn a_convnext_that_does_not_fit_is_refused_with_what_to_give() {
    let folder = common::convnext::folder();
    let refused = |config: ConvnextConfig| initialised(config, &folder).unwrap_err();
    let deeper = refused(ConvnextConfig { depths: [1, 1, 3, 1], ..CONVNEXT });
    assert!(deeper.contains("missing: stages.2.2.dwconv.bias"), "{deeper}");
    let wider = refused(ConvnextConfig { dims: [8, 12, 16, 32], ..CONVNEXT });
    assert!(wider.contains("wrong shape: downsample_layers.3.1.bias is [24]"), "{wider}");
    let unscaled = refused(ConvnextConfig { layer_scale: None, ..CONVNEXT });
    assert!(unscaled.contains("--layer-scale 0"), "{unscaled}");
    let resnet = initialised(CONVNEXT, &self::folder("pth-dino-resnet")).unwrap_err();
    assert!(resnet.contains("holds no ConvNeXt"), "{resnet}");
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
    assert!(refused(&fresh(native), "pth-dino-resnet").contains("convnext_tiny"));
    assert!(refused(&fresh(native), "hf-dinov2-registers").contains("register tokens"));
    let resnet = resnet_of("pth-dino-resnet");
    assert!(refused(&fresh(resnet), name).contains("holds no ResNet"));
    let narrower = refused(&fresh(ResnetConfig { width: resnet.width / 2, ..resnet }), "pth-dino-resnet");
    assert!(narrower.contains("wrong shape: bn1.running_mean"), "{narrower}");
}
