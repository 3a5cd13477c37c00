//! The transformer against the public reference implementation.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use candle_core::{DType, Device, Tensor};
use dino_train::backbone::vit::{Vit, VitConfig, entries};
use golden::{Golden, TOLERANCE, compare};
use rand::SeedableRng;

/// Loads golden weights into a fresh transformer, sizes read from the weights and the attention.
fn load(file: &Golden) -> Vit {
    let position = file.get("weights.pos_embed");
    let side = (position.dim(1).unwrap() - 1).isqrt();
    let patch_size = file.get("weights.patch_embed.proj.weight").dim(3).unwrap();
    let depth = file.below("weights.blocks.").map(|(name, _)| name.split('.').next().unwrap().parse::<usize>().unwrap() + 1).max().unwrap();
    let config = VitConfig {
        img_size: side * patch_size,
        patch_size,
        dim: position.dim(2).unwrap(),
        depth,
        heads: file.get("native.attention").dim(1).unwrap(),
        ..VitConfig::default()
    };
    let vit = Vit::new(config, &mut rand_chacha::ChaCha8Rng::seed_from_u64(0), &Device::Cpu).unwrap();
    for (group, entry) in entries(vit.groups()) {
        let name = entry.name.strip_prefix("backbone.").unwrap();
        let tensor = file.get(&format!("weights.{name}"));
        assert_eq!(tensor.dims(), entry.shape, "{name}");
        group.set(entry, &golden::values(&tensor)).unwrap();
    }
    vit
}

/// Everything that the file expects of one size, computed.
fn outputs(vit: &Vit, input: &Tensor) -> Vec<(&'static str, Tensor)> {
    let tokens = vit.tokens(input).unwrap();
    vec![
        ("embedding", tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap()),
        ("tokens", tokens),
        ("attention", vit.last_attention(input).unwrap()),
        ("tokens_layer0", vit.intermediate(input, 1).unwrap()),
    ]
}

#[test]
fn golden_vit_forward_at_every_size() {
    let file = Golden::load("vit_forward.safetensors");
    let vit = load(&file);
    for size in ["native", "local", "rect"] {
        for (name, got) in outputs(&vit, &file.get(&format!("{size}.input"))) {
            compare(&got, &file.get(&format!("{size}.{name}")), TOLERANCE).unwrap_or_else(|e| panic!("{size}.{name}: {e}"));
        }
    }
}

#[test]
fn golden_vit_features_of_packed_crops_equal_each_alone() {
    let file = Golden::load("vit_forward.safetensors");
    let vit = load(&file);
    let sizes = ["native", "local", "rect"];
    let crops: Vec<Tensor> = sizes.iter().map(|size| file.get(&format!("{size}.input"))).collect();
    let packed = vit.features(&crops, &mut dino_train::backbone::Pass::Frozen).unwrap();
    let alone: Vec<Tensor> = sizes.iter().map(|size| file.get(&format!("{size}.embedding"))).collect();
    compare(&packed, &Tensor::cat(&alone, 0).unwrap(), TOLERANCE).unwrap();
}

#[test]
fn golden_vit_comparison_can_fail() {
    let file = Golden::load("vit_forward.safetensors");
    for size in ["native.", "local.", "rect."] {
        golden::assert_can_fail(file.below(size).filter(|(_, tensor)| tensor.dtype() == DType::F32));
    }
}
