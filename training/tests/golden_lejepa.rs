//! `LeJEPA`'s loss and its gradients against the public code's `SIGReg` class and loss lines (`reference/lejepa.py`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use candle_core::{Device, Tensor, Var};
use dino_train::dino::lejepa::{Lejepa, prediction, sigreg};
use dino_train::exchange::alone;
use golden::{Golden, TOLERANCE, assert_can_fail, compare_relative, compare_values, values};

const CASES: [&str; 3] = ["near", "narrow", "wide"];

fn file() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/lejepa.safetensors");
    Golden(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
}

fn gradient(loss: &Tensor, of: &Var) -> Vec<f32> {
    values(loss.backward().unwrap().get(of).unwrap())
}

#[test]
fn golden_lejepa_values_and_gradients() {
    let file = file();
    for case in CASES {
        let directions = file.get(&format!("{case}.directions"));
        let embeddings = Var::from_tensor(&file.get(&format!("{case}.embeddings"))).unwrap();
        let (views, pictures, _) = embeddings.dims3().unwrap();
        let want = |name: &str| values(&file.get(&format!("{case}.{name}")));
        let check = |name: &str, loss: &[&Tensor; 3]| {
            let got = loss.map(|scalar| scalar.to_scalar::<f32>().unwrap());
            compare_values(&got, &want(&format!("{name}.values")), TOLERANCE).unwrap_or_else(|e| panic!("{case} {name}: {e}"));
            let got = gradient(loss[0], &embeddings);
            compare_relative(&got, &want(&format!("{name}.gradient"))).unwrap_or_else(|e| panic!("{case} {name}, gradient: {e}"));
        };
        // With global views alone it is the public example's.
        let (predicted, spread) = (prediction(&embeddings, views).unwrap(), sigreg(&embeddings, &directions, &alone()).unwrap());
        let loss = ((&spread * 0.02).unwrap() + (&predicted * 0.98).unwrap()).unwrap();
        check("all", &[&loss, &predicted, &spread]);
        compare_relative(&gradient(&spread, &embeddings), &want("sigreg.gradient")).unwrap_or_else(|e| panic!("{case}: {e}"));

        let rows = embeddings.flatten(0, 1).unwrap();
        let lejepa = Lejepa { weight: 0.02, slices: directions.dim(1).unwrap() };
        let value = lejepa.evaluate(&rows, pictures, &directions, &alone()).unwrap();
        check("global", &[&value.loss, &value.prediction, &value.sigreg]);
    }
}

#[test]
fn golden_lejepa_comparison_can_fail() {
    assert_can_fail(file().below(""));
}
