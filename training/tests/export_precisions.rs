//! float16 and int8 files: close to float32, and independent of what shares their batch.

mod common;

use common::{array, bundled_golden, heads, read, run, session_of};
use dino_server::model::Precision;
use dino_train::checkpoint::Tensor;
use dino_train::export::{Options, export};
use ndarray::{ArrayD, Axis};

fn cosine(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f32 {
    let dot = |a: &ArrayD<f32>, b: &ArrayD<f32>| (a * b).sum();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// CLS of one picture of a batch, or its pooled features.
fn embedding(outputs: &std::collections::BTreeMap<&'static str, ArrayD<f32>>, index: usize) -> ArrayD<f32> {
    match outputs.get("tokens") {
        Some(tokens) => tokens.index_axis(Axis(0), index).index_axis(Axis(0), 0).to_owned(),
        None => outputs["embedding"].index_axis(Axis(0), index).to_owned(),
    }
}

#[test]
fn narrow_models_stay_close_whatever_shares_their_batch() {
    let work = tempfile::tempdir().unwrap();
    for (precision, least) in [(Precision::F16, 0.9999), (Precision::Int8, 0.99)] {
        for name in ["pth-dino-backbone", "hf-dinov2-swiglu", "hf-dinov3-vit-gated", "pth-dino-resnet"] {
            if precision == Precision::Int8 && name == "pth-dino-resnet" {
                continue;
            }
            let checkpoint = bundled_golden().join("checkpoints").join(name);
            let options = Options { precisions: vec![Precision::F32, precision], ..heads(4) };
            let exported = export(&checkpoint, &work.path().join(name), &options).unwrap();
            let mut exact = session_of(&exported.folder, Precision::F32);
            let mut narrow = session_of(&exported.folder, precision);
            let expected = read(&checkpoint.join("expected.safetensors"));
            let input = &expected["wide.input"];
            let wanted = run(&mut exact, input);
            let alone = run(&mut narrow, input);
            for index in 0..input.shape[0] {
                let cosine = cosine(&embedding(&alone, index), &embedding(&wanted, index));
                assert!(cosine >= least, "{name} {precision}: {cosine}");
            }

            // The first picture among fifteen others, some of them a hundred times as strong.
            let first = array(input).index_axis(Axis(0), 0).to_owned();
            let many = (0..16).map(|index| first.mapv(|value| value * if index == 5 { 1.0 } else { 7.0 * index as f32 }));
            let data = many.flat_map(IntoIterator::into_iter).collect();
            let shape = [&[16], &input.shape[1..]].concat();
            let together = run(&mut narrow, &Tensor { shape, data });
            let cosine = cosine(&embedding(&together, 5), &embedding(&alone, 0));
            assert!(cosine >= 0.9999, "{name} {precision} in a batch: {cosine}");
        }
    }
}

#[test]
fn a_resnet_has_no_int8_form() {
    let work = tempfile::tempdir().unwrap();
    let options = Options { precisions: vec![Precision::F32, Precision::Int8], ..Options::default() };
    let checkpoint = bundled_golden().join("checkpoints/pth-dino-resnet");
    let error = export(&checkpoint, &work.path().join("model"), &options).unwrap_err();
    assert!(error.to_string().contains("f32 or f16"), "{error}");
    assert!(!work.path().join("model").exists());
}
