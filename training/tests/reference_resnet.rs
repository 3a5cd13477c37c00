//! Residual networks in training, batch norm in the head, SGD and LARS against the public implementations (`reference/resnet.py`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use std::path::Path;

use candle_core::{Device, Tensor};
use dino_train::backbone::Pass;
use dino_train::backbone::parameters::Group;
use dino_train::backbone::resnet::{Kind, Resnet, ResnetConfig};
use dino_train::dino::accumulate::Accumulated;
use dino_train::dino::head::HeadConfig;
use dino_train::dino::learner::{Learner, Step, Views};
use dino_train::dino::network::Network;
use dino_train::dino::optimizer::{Algorithm, Settings};
use dino_train::exchange::alone;
use dino_train::kernels::matmul::Precision;
use golden::{Golden, TOLERANCE, compare, compare_values, values};
use rand::SeedableRng;

const WIDTH: usize = 2;

fn file() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/resnet.safetensors");
    Golden(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
}

fn random() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(0)
}

fn config(kind: Kind, units: [usize; 4]) -> ResnetConfig {
    ResnetConfig { kind, units, width: WIDTH, precision: Precision::F32 }
}

/// Fills groups from the tensors below `prefix`; names lose `strip` first.
fn fill<'a>(groups: impl Iterator<Item = &'a Group>, file: &Golden, prefix: &str, strip: &str) {
    for group in groups {
        for entry in group.entries() {
            let tensor = file.get(&format!("{prefix}.{}", entry.name.strip_prefix(strip).unwrap()));
            assert_eq!(tensor.dims(), entry.shape, "{}", entry.name);
            group.set(entry, &values(&tensor)).unwrap();
        }
    }
}

/// Compares flat values of each group with the tensors below `prefix`, and returns how many tensors that were.
fn compare_groups<'a>(groups: impl Iterator<Item = (&'a Group, Vec<f32>)>, file: &Golden, prefix: &str, strip: &str) -> usize {
    let (mut compared, mut wrong) = (0, Vec::new());
    for (group, flat) in groups {
        for entry in group.entries() {
            let want = values(&file.get(&format!("{prefix}.{}", entry.name.strip_prefix(strip).unwrap())));
            // Sums over hundreds of rows in float32: the largest of a tensor sets the scale of its rounding.
            let scale = want.iter().fold(1f32, |a, b| a.max(b.abs()));
            let scaled = |values: &[f32]| values.iter().map(|value| value / scale).collect::<Vec<_>>();
            let (got, want) = (scaled(&flat[entry.offset..entry.offset + entry.len()]), scaled(&want));
            wrong.extend(compare_values(&got, &want, TOLERANCE).err().map(|error| format!("{prefix}.{}: {error}", entry.name)));
            compared += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    compared
}

fn stored<'a>(groups: impl Iterator<Item = &'a Group>) -> impl Iterator<Item = (&'a Group, Vec<f32>)> {
    groups.map(|group| (group, values(group.var())))
}

#[test]
fn a_residual_network_trains_as_torchvisions() {
    let file = file();
    for (name, kind, units) in [("basic", Kind::Basic, [2, 1, 1, 1]), ("bottleneck", Kind::Bottleneck, [1, 2, 1, 1])] {
        let resnet = Resnet::new(config(kind, units), &mut random(), &Device::Cpu).unwrap();
        fill(resnet.groups().iter().chain(resnet.buffers()), &file, &format!("{name}.init"), "backbone.");
        let input = [file.get(&format!("{name}.input"))];
        let features = resnet.features(&input, &Pass::Trained(&mut random(), &alone())).unwrap();
        compare(&features, &file.get(&format!("{name}.features")), TOLERANCE).unwrap_or_else(|e| panic!("{name}: {e}"));
        let loss = (features * file.get(&format!("{name}.weights"))).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let all = resnet.groups().iter().map(|group| (group, values(gradients.get(group.var()).unwrap())));
        let compared = compare_groups(all, &file, &format!("{name}.grad"), "backbone.");
        assert_eq!(compared, file.below(&format!("{name}.grad.")).count(), "every gradient of the file");
        compare_groups(stored(resnet.buffers().iter()), &file, &format!("{name}.running"), "backbone.");
        let evaluated = resnet.features(&input, &Pass::Frozen).unwrap();
        compare(&evaluated, &file.get(&format!("{name}.evaluated")), TOLERANCE).unwrap_or_else(|e| panic!("{name} evaluated: {e}"));
    }
}

#[test]
fn steps_of_sgd_and_lars_with_batch_norm_in_the_head_equal_the_public_codes() {
    let file = file();
    for (name, algorithm) in [("sgd", Algorithm::Sgd), ("lars", Algorithm::Lars)] {
        let backbone = config(Kind::Bottleneck, [1, 1, 1, 1]);
        let of = |name: &str, axis| file.get(&format!("init.head.{name}")).dim(axis).unwrap();
        let head = HeadConfig {
            dim: backbone.dim(),
            hidden: of("mlp.0.weight", 0),
            bottleneck: of("mlp.6.weight", 0),
            out: Some(of("last_layer.weight_v", 0)),
            batch_norm: true,
            norm_last_layer: false,
            precision: Precision::F32,
        };
        let student = Network::new(backbone, head, &mut random(), &Device::Cpu).unwrap();
        fill(student.groups().chain(student.buffers()), &file, "init", "");
        let mut learner = Learner::new(student, algorithm, alone()).unwrap();
        let losses = values(&file.get(&format!("{name}.losses")));
        let settings = values(&file.get(&format!("{name}.settings")));
        for (i, want) in losses.iter().enumerate() {
            let (global, local) = (file.get(&format!("crops{i}.global")), file.get(&format!("crops{i}.local")));
            let optimizer = Settings {
                lr: f64::from(settings[0]),
                weight_decay: f64::from(settings[1]),
                clip: f64::from(settings[2]),
                freeze_last_layer: i == 0,
            };
            let step = Step { optimizer, momentum: 0.9, teacher_temp: 0.04 };
            let batch = learner
                .gradients(Views { global: &global, local: Some(&local), anchored: None, masks: None }, step.teacher_temp, &mut random())
                .unwrap();
            let loss = batch.value.loss.to_scalar().unwrap();
            compare_values(&[loss], &[*want], TOLERANCE).unwrap_or_else(|e| panic!("{name} loss {i}: {e}"));
            if i == 0 {
                let all = learner.student.groups().map(|group| (group, values(batch.gradients.get(group.var()).unwrap())));
                assert_eq!(compare_groups(all, &file, "init.grad", ""), file.below("init.grad.").count());
            }
            let mut accumulated = Accumulated::default();
            accumulated.add(batch.share().unwrap(), &learner.student.groups().collect::<Vec<_>>()).unwrap();
            learner.step(accumulated, &step, false).unwrap();
        }
        for (network, which) in [(&learner.student, "student"), (&learner.teacher, "teacher")] {
            let prefix = format!("{name}.{which}");
            let compared = compare_groups(stored(network.groups().chain(network.buffers())), &file, &prefix, "");
            assert_eq!(compared, file.below(&format!("{prefix}.")).count(), "every tensor of the {which}");
        }
    }
}

#[test]
fn the_comparison_can_fail() {
    let file = file();
    for prefix in ["basic.", "bottleneck.grad.", "sgd.student.", "lars.teacher."] {
        golden::assert_can_fail(file.below(prefix));
    }
}

#[test]
fn a_batch_of_one_value_a_channel_is_an_error() {
    let resnet = Resnet::new(config(Kind::Basic, [1, 1, 1, 1]), &mut random(), &Device::Cpu).unwrap();
    let picture = [Tensor::zeros((1, 3, 32, 32), candle_core::DType::F32, &Device::Cpu).unwrap()];
    let said = resnet.features(&picture, &Pass::Teacher(&alone())).unwrap_err().to_string();
    assert!(said.contains("larger pictures or batches"), "{said}");
    assert_eq!(resnet.features(&picture, &Pass::Frozen).unwrap().dims(), [1, 8 * WIDTH], "evaluation needs no batch");
}
