//! DINOv2's losses, targets and gradients against its own code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use candle_core::{DType, Device, Tensor};
use dino_train::backbone::vit::VitConfig;
use dino_train::dino::head::HeadConfig;
use dino_train::dino::learner::{Gradients, Learner, Views};
use dino_train::dino::loss::Centering;
use dino_train::dino::network::Network;
use dino_train::dino::optimizer::Algorithm;
use dino_train::exchange::alone;
use dino_train::kernels::matmul::Precision;
use golden::{Golden, TOLERANCE, compare_relative, compare_values};
use rand::SeedableRng;
use serde_json::Value;

fn description() -> Value {
    let path = golden::folder().join("golden_v2.json");
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn random() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(0)
}

/// The name of a parameter in the golden files.
fn public(name: &str) -> String {
    if name.starts_with("head.") { format!("dino_{name}") } else { name.to_owned() }
}

/// A learner with the weights and settings of a case.
fn learner(file: &Golden, description: &Value, case: &Value) -> Learner {
    let size = |name: &str| description["config"][name].as_u64().unwrap() as usize;
    let backbone = VitConfig {
        img_size: size("img"),
        patch_size: size("patch"),
        dim: size("dim"),
        depth: size("depth"),
        heads: size("heads"),
        registers: case["registers"].as_u64().unwrap() as usize,
        layer_scale: Some(1.0),
        mask_token: true,
        ..VitConfig::default()
    };
    let head = HeadConfig {
        dim: size("dim"),
        hidden: size("hidden"),
        bottleneck: size("bottleneck"),
        out: size("out"),
        batch_norm: false,
        norm_last_layer: false,
        precision: Precision::F32,
    };
    let student = Network::new(backbone, head, &mut random(), &Device::Cpu).unwrap();
    let mut learner = Learner::new(student, Algorithm::Adamw, alone()).unwrap();
    for (network, name) in [(&learner.student, "student"), (&learner.teacher, "teacher")] {
        for (group, entry) in network.entries() {
            let tensor = file.get(&format!("{name}.{}", public(&entry.name)));
            assert_eq!(tensor.dims(), entry.shape, "{}", entry.name);
            group.set(entry, &golden::values(&tensor)).unwrap();
        }
    }
    learner.loss.centering = serde_json::from_value(case["centering"].clone()).unwrap();
    learner.loss.set_centre(file.get("dino_center"));
    learner.loss.student_temp = description["student_temp"].as_f64().unwrap();
    learner.loss.center_momentum = description["center_momentum"].as_f64().unwrap();
    if case["losses"]["koleo"].is_number() {
        learner.koleo_weight = description["koleo_weight"].as_f64().unwrap();
    }
    learner
}

fn gradients(learner: &Learner, file: &Golden, case: &Value) -> Gradients {
    let (global, local, masks) = (file.get("global_crops"), file.get("local_crops"), file.get("masks"));
    let views = Views { global: &global, local: Some(&local), masks: Some(&masks) };
    learner.gradients(views, case["teacher_temp"].as_f64().unwrap(), &mut random()).unwrap()
}

/// The first thing in which a batch differs from a case.
fn check(learner: &Learner, file: &Golden, case: &Value) -> Result<(), String> {
    let batch = gradients(learner, file, case);
    let losses = &case["losses"];
    let scalar = |tensor: &Tensor| tensor.to_scalar::<f32>().unwrap();
    let term = |name: &str| losses[name].as_f64().unwrap() as f32;
    let same = |what: &str, got: f32, want: f32| compare_values(&[got], &[want], TOLERANCE).map_err(|e| format!("{what}: {e}"));
    same("DINO", scalar(&batch.value.loss), term("dino_local") + term("dino_global"))?;
    same("KoLeo", batch.koleo.as_ref().map_or(0.0, scalar), losses["koleo"].as_f64().unwrap_or_default() as f32)?;
    let want = file.get("teacher_probabilities");
    compare_relative(&golden::values(&batch.value.targets), &golden::values(&want)).map_err(|e| format!("targets: {e}"))?;
    for (group, entry) in learner.student.entries() {
        let gradient = batch.gradients.get(group.var()).ok_or_else(|| format!("{} has no gradient", entry.name))?;
        let gradient = golden::values(gradient)[entry.offset..entry.offset + entry.len()].to_vec();
        let want = golden::values(&file.get(&format!("gradient.{}", public(&entry.name))));
        compare_relative(&gradient, &want).map_err(|e| format!("gradient of {}: {e}", entry.name))?;
    }
    Ok(())
}

#[test]
fn golden_v2_dino_koleo_sinkhorn() {
    let (file, description) = (Golden::load("v2_dino_koleo_sinkhorn.safetensors"), description());
    let case = &description["cases"]["dino_koleo_sinkhorn"];
    check(&learner(&file, &description, case), &file, case).unwrap();
}

/// Each part of the step is noticed when it is another.
#[test]
fn golden_v2_comparison_can_fail() {
    let (file, description) = (Golden::load("v2_dino_koleo_sinkhorn.safetensors"), description());
    let case = &description["cases"]["dino_koleo_sinkhorn"];
    let fails = |change: &dyn Fn(&mut Learner), part: &str| {
        let mut learner = learner(&file, &description, case);
        change(&mut learner);
        let error = check(&learner, &file, case).unwrap_err();
        assert!(error.starts_with(part), "{error}");
    };
    fails(&|learner| learner.loss.centering = Centering::Centering, "DINO");
    fails(&|learner| learner.koleo_weight *= 1.01, "KoLeo");
    fails(&|learner| learner.loss.student_temp *= 1.001, "DINO");
    fails(
        &|learner| {
            let token = learner.student.groups().find(|group| group.entries()[0].name == "backbone.mask_token").unwrap();
            token.var().set(&Tensor::ones(token.var().dims(), DType::F32, &Device::Cpu).unwrap()).unwrap();
        },
        "DINO",
    );
    // A gradient that is off by a thousandth of the largest.
    let want = golden::values(&file.get("gradient.backbone.blocks.1.ls2.gamma"));
    for i in 0..want.len() {
        let mut moved = want.clone();
        moved[i] += 1e-3 * want.iter().fold(0f32, |largest, g| largest.max(g.abs()));
        assert!(compare_relative(&moved, &want).is_err());
    }
}
