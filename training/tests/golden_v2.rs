//! DINOv2's losses, targets and gradients against its own code.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use candle_core::{DType, Device, Tensor, Var};
use dino_train::backbone::vit::VitConfig;
use dino_train::dino::accumulate::Accumulated;
use dino_train::dino::gram::{Negatives, gram, resampled};
use dino_train::dino::head::HeadConfig;
use dino_train::dino::ibot::Ibot;
use dino_train::dino::learner::{Gradients, Learner, Step, Views};
use dino_train::dino::loss::Centering;
use dino_train::dino::masks::Masks;
use dino_train::dino::network::Network;
use dino_train::dino::optimizer::{Algorithm, Settings};
use dino_train::exchange::alone;
use golden::{Golden, TOLERANCE, assert_can_fail, compare_relative, compare_values};
use serde_json::Value;

fn description() -> Value {
    golden::description("golden_v2.json")
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
    let head = golden::head(size);
    let mut student = Network::new(backbone, head, &mut golden::random(), &Device::Cpu).unwrap();
    if case["separate_head"] == true {
        student = student.with_ibot_head(HeadConfig { out: Some(size("ibot_out")), ..head }, &mut golden::random(), &Device::Cpu).unwrap();
    }
    let mut learner = Learner::new(student, Algorithm::Adamw, alone()).unwrap();
    for (network, name) in [(&learner.student, "student"), (&learner.teacher, "teacher")] {
        for (group, entry) in network.entries() {
            let tensor = file.get(&format!("{name}.{}", public(&entry.name)));
            assert_eq!(tensor.dims(), entry.shape, "{}", entry.name);
            group.set(entry, &golden::values(&tensor)).unwrap();
        }
    }
    if case["losses"]["ibot"].is_number() {
        let mut ibot = Ibot::new(1.0, learner.student.patch_head().config().columns(), &Device::Cpu).unwrap();
        ibot.patches.set_centre(file.get("ibot_center").squeeze(0).unwrap());
        learner.ibot = Some(ibot);
    }
    learner.loss.set_centre(file.get("dino_center"));
    for loss in std::iter::once(&mut learner.loss).chain(learner.ibot.as_mut().map(|ibot| &mut ibot.patches)) {
        loss.centering = serde_json::from_value(case["centering"].clone()).unwrap();
        loss.student_temp = description["student_temp"].as_f64().unwrap();
        loss.center_momentum = description["center_momentum"].as_f64().unwrap();
    }
    if case["losses"]["koleo"].is_number() {
        learner.koleo_weight = description["koleo_weight"].as_f64().unwrap();
    }
    learner
}

fn gradients(learner: &Learner, file: &Golden, case: &Value) -> Gradients {
    let (global, local) = (file.get("global_crops"), file.get("local_crops"));
    let masked: Vec<Vec<f32>> = file.get("masks").to_vec2().unwrap();
    let masked: Vec<Vec<bool>> = masked.iter().map(|mask| mask.iter().map(|masked| *masked > 0.0).collect()).collect();
    let masks = Masks::new(&masked, &Device::Cpu).unwrap();
    let views = Views { global: &global, local: Some(&local), anchored: None, masks: Some(&masks) };
    learner.gradients(views, case["teacher_temp"].as_f64().unwrap(), &mut golden::random()).unwrap()
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
    same("iBOT", batch.ibot.as_ref().map_or(0.0, |ibot| scalar(&ibot.loss)), losses["ibot"].as_f64().unwrap_or_default() as f32)?;
    if let Some(ibot) = &batch.ibot {
        let want = file.get("teacher_patch_probabilities");
        compare_relative(&golden::values(&ibot.targets), &golden::values(&want)).map_err(|e| format!("targets of patches: {e}"))?;
    }
    // The public code has the teacher's views the other way round, each beside the student's view that it is held against.
    let want = file.get("teacher_probabilities");
    let want = Tensor::cat(&[want.narrow(0, 1, 1).unwrap(), want.narrow(0, 0, 1).unwrap()], 0).unwrap();
    compare_relative(&golden::values(&batch.value.targets), &golden::values(&want)).map_err(|e| format!("targets: {e}"))?;
    for (group, entry) in learner.student.entries() {
        let gradient = batch.gradients.get(group.var()).ok_or_else(|| format!("{} has no gradient", entry.name))?;
        let gradient = golden::values(gradient)[entry.offset..entry.offset + entry.len()].to_vec();
        let want = golden::values(&file.get(&format!("gradient.{}", public(&entry.name))));
        compare_relative(&gradient, &want).map_err(|e| format!("gradient of {}: {e}", entry.name))?;
    }
    Ok(())
}

/// A case by its name: the learner, its tensors, and what is expected.
fn case(name: &str) -> (Learner, Golden, Value) {
    let (file, description) = (Golden::load(&format!("v2_{name}.safetensors")), description());
    let case = description["cases"][name].clone();
    (learner(&file, &description, &case), file, case)
}

#[test]
fn golden_v2_every_case() {
    let description = description();
    let cases = description["cases"].as_object().unwrap();
    assert!(!cases.is_empty());
    for name in cases.keys() {
        let (mut learner, file, case) = case(name);
        check(&learner, &file, &case).unwrap_or_else(|e| panic!("{name}: {e}"));
        check_centres(&mut learner, &file, &case).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// What a step leaves behind: centres that moved, or that Sinkhorn-Knopp does not touch.
fn check_centres(learner: &mut Learner, file: &Golden, case: &Value) -> Result<(), String> {
    let mut accumulated = Accumulated::default();
    let share = gradients(learner, file, case).share().unwrap();
    accumulated.add(share, &learner.student.groups().collect::<Vec<_>>()).unwrap();
    let optimizer = Settings { lr: 0.0, weight_decay: 0.0, clip: 0.0, freeze_last_layer: false };
    learner.step(accumulated, &Step { optimizer, momentum: 1.0, teacher_temp: 0.06 }, false).unwrap();
    let same = |centre: &Tensor, name: &str| {
        let moved = format!("{name}.after");
        let want = file.get(if file.0.contains_key(&moved) { &moved } else { name });
        compare_values(&golden::values(centre), &golden::values(&want), TOLERANCE).map_err(|e| format!("{name}: {e}"))
    };
    same(learner.loss.centre(), "dino_center")?;
    learner.ibot.as_ref().map_or(Ok(()), |ibot| same(ibot.patches.centre(), "ibot_center"))
}

/// Every tensor that is expected is compared: a change of a thousandth of its largest value is seen.
#[test]
fn golden_v2_every_tensor_counts() {
    let changed = |file: &Golden, name: &str| {
        let mut values = golden::values(&file.get(name));
        values[0] += 1e-3 * values.iter().fold(1e-3_f32, |largest, value| largest.max(value.abs()));
        let mut file = Golden(file.0.clone());
        let shape = file.get(name).dims().to_vec();
        file.0.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        file
    };
    for name in description()["cases"].as_object().unwrap().keys() {
        let (learner, file, case) = case(name);
        let counts = |tensor: &&String| {
            let of_patches = tensor.as_str() == "teacher_patch_probabilities";
            tensor.starts_with("gradient.") || tensor.as_str() == "teacher_probabilities" || (of_patches && learner.ibot.is_some())
        };
        let expected: Vec<String> = file.0.keys().filter(counts).cloned().collect();
        assert!(expected.len() > 20, "{expected:?}");
        for tensor in expected {
            let error = check(&learner, &changed(&file, &tensor), &case).unwrap_err();
            assert!(
                error.starts_with(if tensor.starts_with("gradient.") { "gradient of" } else { "targets" }),
                "{name}, {tensor}: {error}"
            );
        }
        for centre in ["dino_center.after", "ibot_center.after"].into_iter().filter(|centre| file.0.contains_key(*centre)) {
            let (mut learner, ..) = self::case(name);
            let error = check_centres(&mut learner, &changed(&file, centre), &case).unwrap_err();
            assert!(centre.starts_with(error.split(':').next().unwrap()), "{name}, {centre}: {error}");
        }
    }
}

#[test]
fn golden_v2_gram() {
    let file = Golden::load("v2_gram.safetensors");
    let (student, anchor) = (Var::from_tensor(&file.get("student")).unwrap(), file.get("anchor"));
    let run = |across, negatives| {
        let loss = gram(&student, &anchor, across, negatives).unwrap();
        let gradients = loss.backward().unwrap();
        (loss.to_scalar::<f32>().unwrap(), golden::values(gradients.get(&student).unwrap()))
    };
    let forms = [
        ("image_plain", false, Negatives::Kept),
        ("image_remove_neg", false, Negatives::Removed),
        ("image_teacher_neg", false, Negatives::RemovedFromAnchor),
        ("batch_remove_neg", true, Negatives::Removed),
    ];
    for (name, across, negatives) in forms {
        let want = |part: &str| golden::values(&file.get(&format!("{name}.{part}")));
        let (loss, gradient) = run(across, negatives);
        compare_values(&[loss], &want("loss"), TOLERANCE).unwrap_or_else(|e| panic!("{name}: {e}"));
        compare_relative(&gradient, &want("gradient")).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Every other form is noticed.
        for (other, across, negatives) in forms.into_iter().filter(|(other, ..)| *other != name) {
            let (loss, _) = run(across, negatives);
            assert!(compare_values(&[loss], &want("loss"), TOLERANCE).is_err(), "{other} passes for {name}");
        }
    }
}

/// An anchor that sees larger pictures (`reference/gram.py`).
#[test]
fn golden_v2_gram_of_a_finer_anchor() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/gram.safetensors");
    let file = Golden(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
    for case in ["double", "more", "odd", "same"] {
        let get = |part: &str| file.get(&format!("{case}.{part}"));
        let student = Var::from_tensor(&get("student")).unwrap();
        let anchor = resampled(&get("anchor"), student.dim(1).unwrap()).unwrap();
        compare_values(&golden::values(&anchor), &golden::values(&get("resampled")), TOLERANCE).unwrap_or_else(|e| panic!("{case}: {e}"));
        let loss = gram(&student, &anchor, false, Negatives::Kept).unwrap();
        let gradient = golden::values(loss.backward().unwrap().get(&student).unwrap());
        let loss = loss.to_scalar::<f32>().unwrap();
        compare_values(&[loss], &golden::values(&get("loss")), TOLERANCE).unwrap_or_else(|e| panic!("{case}: {e}"));
        compare_relative(&gradient, &golden::values(&get("gradient"))).unwrap_or_else(|e| panic!("{case}: {e}"));
    }
    let oblong = Tensor::zeros((1, 6, 2), DType::F32, &Device::Cpu).unwrap();
    assert!(resampled(&oblong, 4).is_err());
    assert_can_fail(file.below(""));
}

/// Each part of the step is noticed when it is another.
#[test]
fn golden_v2_comparison_can_fail() {
    let fails = |name: &str, change: &dyn Fn(&mut Learner), part: &str| {
        let (mut learner, file, case) = case(name);
        change(&mut learner);
        let error = check(&learner, &file, &case).unwrap_err();
        assert!(error.starts_with(part), "{name}: {error}");
    };
    fails("dino_koleo_sinkhorn", &|learner| learner.loss.centering = Centering::Centering, "DINO");
    fails("dino_koleo_sinkhorn", &|learner| learner.koleo_weight *= 1.01, "KoLeo");
    fails("dino_koleo_sinkhorn", &|learner| learner.loss.student_temp *= 1.001, "DINO");
    let hide = |learner: &mut Learner| {
        let token = learner.student.groups().find(|group| group.entries()[0].name == "backbone.mask_token").unwrap();
        token.var().set(&Tensor::ones(token.var().dims(), DType::F32, &Device::Cpu).unwrap()).unwrap();
    };
    fails("dino_koleo_sinkhorn", &hide, "DINO");
    fails("ibot_separate_sinkhorn", &|learner| learner.ibot.as_mut().unwrap().weight *= 1.001, "iBOT");
    fails("ibot_shared_centering", &|learner| learner.ibot.as_mut().unwrap().patches.set_centre(learner.loss.centre().clone()), "iBOT");
    // A gradient that is off by a thousandth of the largest.
    let (_, file, _) = case("dino_koleo_sinkhorn");
    let want = golden::values(&file.get("gradient.backbone.blocks.1.ls2.gamma"));
    for i in 0..want.len() {
        let mut moved = want.clone();
        moved[i] += 1e-3 * want.iter().fold(0f32, |largest, g| largest.max(g.abs()));
        assert!(compare_relative(&moved, &want).is_err());
    }
}
