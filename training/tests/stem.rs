//! Transformers with a stem of convolutions, registers, layer scale, gates or rotary positions: their gradients, and what is exported.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use candle_core::{Device, Tensor};
use common::{assert_close, picture, session};
use dino_train::backbone::Pass;
use dino_train::backbone::positions::{PositionCode, RotaryJitter};
use dino_train::backbone::stem::Stem;
use dino_train::backbone::vit::{Vit, VitConfig};
use dino_train::exchange::alone;
use dino_train::export;
use dino_train::weights::Tensor as Stored;
use ndarray::ArrayD;
use rand::SeedableRng;

fn random() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(3)
}

fn config() -> VitConfig {
    VitConfig {
        img_size: 32,
        patch_size: 8,
        dim: 24,
        depth: 2,
        heads: 3,
        stem: Stem::Conv,
        registers: 2,
        layer_scale: Some(0.5),
        mask_token: true,
        ..VitConfig::default()
    }
}

fn vit() -> Vit {
    Vit::new(config(), &mut random(), &Device::Cpu).unwrap()
}

fn pixels(picture: &Stored) -> Tensor {
    Tensor::from_slice(&picture.data, picture.shape.as_slice(), &Device::Cpu).unwrap()
}

/// Sum of the features, each with a weight of its own.
fn loss(vit: &Vit, pictures: &Tensor) -> Tensor {
    let features = vit.features(std::slice::from_ref(pictures), &mut Pass::Trained(&mut random(), &alone())).unwrap();
    let weights: Vec<f32> = (0..features.elem_count()).map(|i| (i as f32).sin()).collect();
    (&features * Tensor::from_vec(weights, features.shape(), &Device::Cpu).unwrap()).unwrap().sum_all().unwrap()
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let (vit, pictures) = (vit(), pixels(&picture(32, 24)));
    let gradients = loss(&vit, &pictures).backward().unwrap();
    let mut checked = 0;
    for group in vit.groups().iter().filter(|group| group.entries()[0].name.contains("patch_embed")) {
        let gradient: Vec<f32> = gradients.get(group.var()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let values: Vec<f32> = group.var().to_vec1().unwrap();
        for entry in group.entries() {
            // Along the gradient of one parameter, the slope is its squared norm.
            let own = &gradient[entry.offset..entry.offset + entry.len()];
            let norm = own.iter().map(|g| g * g).sum::<f32>().sqrt();
            assert!(norm > 0.0 && norm.is_finite(), "{}", entry.name);
            let at = |step: f32| {
                let mut moved = values.clone();
                for (value, g) in moved[entry.offset..].iter_mut().zip(own) {
                    *value += step * g / norm;
                }
                group.var().set(&Tensor::from_vec(moved, values.len(), &Device::Cpu).unwrap()).unwrap();
                loss(&vit, &pictures).to_scalar::<f32>().unwrap()
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            at(0.0);
            assert!((slope - norm).abs() < 2e-2 * norm, "{}: {slope}, not {norm}", entry.name);
            checked += 1;
        }
    }
    assert_eq!(checked, 3 * 3 + 2, "three convolutions with their norms, and the embedding");
}

#[test]
fn the_exported_model_gives_the_trainers_features() {
    exported_as_trained(config());
}

#[test]
fn gates_and_rotary_positions_are_exported_as_they_are_trained() {
    let jitter = RotaryJitter { rescale: Some(2.0), ..RotaryJitter::default() };
    let rotary = VitConfig { positions: PositionCode::Rotary { base: 50.0, jitter }, stem: Stem::Patch, ..config() };
    exported_as_trained(VitConfig { gated: Some(40), ..config() });
    exported_as_trained(rotary);
    exported_as_trained(VitConfig { stem: Stem::Conv, ..rotary });
    exported_as_trained(VitConfig { gated: Some(40), registers: 0, layer_scale: None, ..rotary });
}

fn exported_as_trained(config: VitConfig) {
    let vit = Vit::new(config, &mut random(), &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = common::Tensors::new();
    for group in vit.groups() {
        let flat: Vec<f32> = group.var().to_vec1().unwrap();
        for entry in group.entries() {
            let data = flat[entry.offset..entry.offset + entry.len()].to_vec();
            tensors.insert(entry.name.clone(), Stored { shape: entry.shape.clone(), data });
        }
    }
    let checkpoint = folder.path().join("checkpoint.safetensors");
    common::write(&checkpoint, &tensors, &[("dino", r#"{"dim":24,"depth":2,"heads":3}"#)]);
    let exported = export::export(&checkpoint, &folder.path().join("model"), &common::heads(3)).unwrap();
    let mut session = session(&exported.folder);
    // The table's own size and another, with more rows than columns.
    for (height, width) in [(32, 32), (48, 24)] {
        let picture = picture(height, width);
        let want = vit.tokens(&pixels(&picture)).unwrap();
        let want = ArrayD::from_shape_vec(want.dims(), want.flatten_all().unwrap().to_vec1::<f32>().unwrap()).unwrap();
        assert_close(&common::run(&mut session, &picture)["tokens"], &want, &format!("{height} x {width}"));
    }
    // A run can start from it.
    let other = Vit::new(*vit.config(), &mut rand_chacha::ChaCha8Rng::seed_from_u64(9), &Device::Cpu).unwrap();
    let reading = common::heads(3).checkpoint;
    dino_train::weights::init::initialise(
        &dino_train::backbone::Backbone::Vit(other.clone()),
        &checkpoint,
        &reading,
        &dino_vision::transform::Transform::evaluation(),
    )
    .unwrap();
    let features = |vit: &Vit| vit.tokens(&pixels(&picture(32, 32))).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (got, want) in features(&other).iter().zip(features(&vit)) {
        assert!((got - want).abs() < 1e-4, "{got}, not {want}");
    }
}

#[test]
fn a_patch_that_cannot_be_halved_is_refused() {
    let refused = |patch_size, dim| {
        let config = VitConfig { img_size: 2 * patch_size, patch_size, dim, depth: 1, heads: 1, stem: Stem::Conv, ..VitConfig::default() };
        Vit::new(config, &mut random(), &Device::Cpu).unwrap_err().to_string()
    };
    assert!(refused(14, 24).contains("--patch-size 14"));
    assert!(refused(8, 22).contains("multiple of 4"));
}
