//! Whole training steps on a device that is not the host, in whose place the CPU stands: the same numbers, one wait a step.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::accumulate::Accumulated;
use super::gram::{Gram, Negatives};
use super::head::HeadConfig;
use super::ibot::Ibot;
use super::learner::{Learner, Report, Step, Views};
use super::lejepa::Lejepa;
use super::loss::Centering;
use super::masks::{Masking, Masks};
use super::network::Network;
use super::optimizer::{Algorithm, Settings};
use super::sinkhorn::Queue;
use crate::backbone::BackboneConfig;
use crate::backbone::convnext::ConvnextConfig;
use crate::backbone::parameters::Entry;
use crate::backbone::positions::{PositionCode, RotaryJitter};
use crate::backbone::resnet::{Kind, ResnetConfig};
use crate::backbone::vit::VitConfig;
use crate::exchange::alone;
use crate::kernels::matmul::Precision;
use crate::ops::host::elsewhere;

const OUT: usize = 32;
const BATCHES: u64 = 2;

fn generator(purpose: u64, step: u64, batch: u64, sequence: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(((purpose * 100 + step) * 100 + batch) * 100 + sequence)
}

fn head(dim: usize, batch_norm: bool) -> HeadConfig {
    HeadConfig { dim, hidden: 24, bottleneck: 8, out: Some(OUT), batch_norm, norm_last_layer: false, precision: Precision::F32 }
}

fn vit(mask_token: bool) -> BackboneConfig {
    VitConfig { img_size: 32, patch_size: 8, dim: 16, depth: 2, heads: 2, registers: 1, mask_token, ..VitConfig::default() }.into()
}

fn rotary() -> BackboneConfig {
    let jitter = RotaryJitter { rescale: Some(2.0), ..RotaryJitter::default() };
    let BackboneConfig::Vit(plain) = vit(false) else { panic!("a transformer") };
    VitConfig { gated: Some(24), positions: PositionCode::Rotary { base: 100.0, jitter }, ..plain }.into()
}

fn learner(backbone: BackboneConfig, algorithm: Algorithm, batch_norm: bool) -> Result<Learner> {
    let (mut random, dim) = (generator(1, 0, 0, 0), backbone.dim());
    let network = Network::new(backbone, head(dim, batch_norm), &mut random, &Device::Cpu)?;
    Learner::new(network, algorithm, alone())
}

/// With all that DINOv2 and DINOv3 add.
fn dinov2(separate_head: bool) -> Result<Learner> {
    let mut random = generator(1, 0, 0, 0);
    let mut network = Network::new(vit(true), head(16, false), &mut random, &Device::Cpu)?;
    if separate_head {
        network = network.with_ibot_head(head(16, false), &mut random, &Device::Cpu)?;
    }
    let mut learner = Learner::new(network, Algorithm::Sgd, alone())?;
    let mut ibot = Ibot::new(1.0, OUT, &Device::Cpu)?;
    (ibot.patches.centering, learner.loss.centering) = (Centering::SinkhornKnopp, Centering::SinkhornKnopp);
    learner.loss.queue = Queue::new(64);
    learner.koleo_weight = 0.1;
    learner.ibot = Some(ibot);
    let anchor = learner.teacher.duplicate()?.backbone;
    learner.gram = Some(Gram { weight: 1.0, anchor, across: false, negatives: Negatives::Kept, is_own: false });
    Ok(learner)
}

/// A network that learns without a teacher.
fn lejepa(backbone: BackboneConfig) -> Result<Learner> {
    let (mut random, dim) = (generator(1, 0, 0, 0), backbone.dim());
    let network = Network::new(backbone, HeadConfig { out: None, ..head(dim, true) }, &mut random, &Device::Cpu)?;
    let mut learner = Learner::new(network, Algorithm::Sgd, alone())?;
    learner.lejepa = Some(Lejepa { weight: 0.1, slices: 32 });
    learner.koleo_weight = 0.1;
    Ok(learner)
}

/// Values by their names.
type State = BTreeMap<String, Vec<f32>>;

/// Three steps of two micro-batches each: parameters, running statistics, centre and moments; the reports; and how often they waited for
/// another device.
fn run(mut learner: Learner) -> Result<(State, Vec<Report>, usize)> {
    let mut random = generator(2, 0, 0, 0);
    let mut reports = Vec::new();
    for step in 0..3 {
        let mut batches = Accumulated::default();
        for batch in 0..BATCHES {
            let pixels = |sequence: u64, crops: usize, side: usize| {
                let mut random = generator(3, step, batch, sequence);
                let values =
                    std::iter::repeat_with(|| crate::backbone::parameters::Random::normal(&mut random)).take(crops * 3 * side * side);
                Tensor::from_vec(values.collect(), (crops, 3, side, side), &Device::Cpu)
            };
            // The cells of a ConvNeXt are of 32 pixels.
            let side = if matches!(learner.student.backbone.config(), BackboneConfig::Convnext(_)) { 32 } else { 16 };
            let (global, local) = (pixels(0, 8, 32)?, pixels(1, 12, side)?);
            let masking = Masking { probability: 0.5, low: 0.2, high: 0.5 };
            let masks = learner.ibot.as_ref().map(|_| Masks::new(&masking.draw(8, (4, 4), &mut random), &Device::Cpu)).transpose()?;
            let views = Views { global: &global, local: Some(&local), anchored: None, masks: masks.as_ref() };
            learner.add(&mut batches, views, 0.06, &mut random)?;
        }
        let optimizer = Settings { lr: 2e-3, weight_decay: 0.04, clip: 0.3, freeze_last_layer: step == 0 };
        reports
            .push(learner.step(batches, &Step { optimizer, momentum: 0.9, teacher_temp: 0.06 }, false).map_err(candle_core::Error::wrap)?);
    }
    let waits = elsewhere::copies();
    Ok((state(&learner)?, reports, waits))
}

fn state(learner: &Learner) -> Result<State> {
    let mut all = State::new();
    for (network, side) in [(&learner.student, "student"), (&learner.teacher, "teacher")] {
        for group in network.groups().chain(network.buffers()) {
            let flat: Vec<f32> = group.var().to_vec1()?;
            let values = |entry: &Entry| flat[entry.offset..entry.offset + entry.len()].to_vec();
            all.extend(group.entries().iter().map(|entry| (format!("{side} {}", entry.name), values(entry))));
        }
    }
    all.insert("centre".to_owned(), learner.loss.centre().flatten_all()?.to_vec1()?);
    for (name, moments) in learner.optimizer.moments()? {
        let parts = [("steps", vec![moments.steps as f32]), ("first", moments.first.clone()), ("second", moments.second.clone())];
        all.extend(parts.map(|(part, values)| (format!("{part} {name}"), values)));
    }
    Ok(all)
}

#[test]
fn a_step_on_another_device_waits_for_it_once_and_gives_the_same_numbers() {
    let resnet = || ResnetConfig { kind: Kind::Bottleneck, units: [1; 4], width: 4, precision: Precision::F32 }.into();
    let convnext = || {
        let (depths, dims) = ([1, 1, 2, 1], [4, 8, 8, 20]);
        ConvnextConfig { depths, dims, drop_path: 0.3, layer_scale: Some(0.5), precision: Precision::F32 }.into()
    };
    let cases: [(&str, &dyn Fn() -> Result<Learner>); 10] = [
        ("gates and rotary positions", &|| learner(rotary(), Algorithm::Sgd, false)),
        ("DINO by AdamW", &|| learner(vit(false), Algorithm::Adamw, false)),
        ("DINO by SGD", &|| learner(vit(false), Algorithm::Sgd, false)),
        ("batch norm in the head", &|| learner(vit(false), Algorithm::Sgd, true)),
        ("DINOv2 with Gram anchoring", &|| dinov2(true)),
        ("DINOv2 with one head", &|| dinov2(false)),
        ("batch norm in the projector of LeJEPA", &|| lejepa(resnet())),
        ("a ResNet by SGD", &|| learner(resnet(), Algorithm::Sgd, false)),
        ("a ResNet by LARS", &|| learner(resnet(), Algorithm::Lars, true)),
        ("a ConvNeXt by SGD", &|| learner(convnext(), Algorithm::Sgd, false)),
    ];
    for (name, make) in cases {
        let (expected, reports, _) = run(make().unwrap()).unwrap();
        let (ours, our_reports, waits) = elsewhere::run(|| run(make().unwrap())).unwrap();
        assert_eq!(waits, reports.len(), "{name}");
        assert!(ours.keys().eq(expected.keys()), "{name}");
        for (of, expected) in &expected {
            // The gradients of a bias ahead of a batch norm are nothing but rounding, and so are those of keys, of which AdamW makes steps of one
            // size: its own test compares it.
            if name.ends_with("AdamW") || (name.starts_with("batch norm") && of.contains("head.mlp.") && of.ends_with(".bias")) {
                continue;
            }
            assert_eq!(ours[of].len(), expected.len(), "{name}, {of}");
            for (ours, expected) in ours[of].iter().zip(expected) {
                assert!((ours - expected).abs() <= 1e-4 + 1e-4 * expected.abs(), "{name}, {of}: {ours} instead of {expected}");
            }
        }
        for (ours, expected) in our_reports.iter().zip(&reports) {
            assert!((ours.means.loss - expected.means.loss).abs() < 1e-4, "{name}: {ours:?} instead of {expected:?}");
            assert!((ours.feature_std - expected.feature_std).abs() < 1e-4, "{name}");
        }
    }
}

/// Nothing else than [`crate::ops::host::to_host`] copies to main memory in a step: the test above counts its calls.
#[test]
fn the_parts_of_a_step_copy_to_main_memory_in_one_place() {
    // Attention maps, what the CPU does by itself, and parameters that are set or stored.
    let others = ["ops/host.rs", "ops/block.rs", "ops/loss.rs", "backbone/parameters.rs", "dino/on_device.rs"];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.join("dino"), root.join("ops"), root.join("backbone")];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            if others.contains(&name.as_str()) {
                continue;
            }
            let text = fs_err::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                let copies = ["to_vec0", "to_vec1", "to_vec2", "to_vec3", "to_scalar", "to_device"].iter().any(|call| line.contains(call));
                let is_on_the_cpu = name == "dino/accumulate.rs" && line.contains("*sum += scalar.to_scalar");
                assert!(!copies || is_on_the_cpu, "{name}: {line}");
            }
            read += 1;
        }
    }
    assert!(read > 20);
}
