//! float16 and int8 files: close to float32, and independent of what shares their batch.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use common::{Tensors, array, bundled_golden, heads, read, run, session_of, write};
use dino_train::export::{Measured, Options, export};
use dino_train::weights::Tensor;
use dino_vision::model::Precision;
use ndarray::{ArrayD, Axis};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Normal};

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

#[test]
fn the_cost_is_measured_on_pictures_and_stands_in_the_manifest() {
    let work = tempfile::tempdir().unwrap();
    let pictures = work.path().join("pictures");
    // Two classes of flat colours that differ in strength; a file that is no picture is passed over.
    for index in 0..24_u8 {
        let class = pictures.join(if index % 2 == 0 { "red" } else { "blue" });
        fs_err::create_dir_all(&class).unwrap();
        let strength = 60 + 8 * index;
        let colour = if index % 2 == 0 { [strength, index, 20] } else { [20, index, strength] };
        image::RgbImage::from_pixel(32, 32, image::Rgb(colour)).save(class.join(format!("{index}.png"))).unwrap();
    }
    fs_err::write(pictures.join("red/notes.txt"), "no picture").unwrap();

    // The reference is not among the files, and is measured against all the same.
    let options =
        |pictures| Options { precisions: vec![Precision::F16, Precision::Int8], measured: Measured::Folder(pictures), ..heads(4) };
    let checkpoint = bundled_golden().join("checkpoints/hf-dino-vit");
    let exported = export(&checkpoint, &work.path().join("model"), &options(pictures.clone())).unwrap();
    let written = dino_vision::model::Manifest::load(&exported.folder).unwrap();
    assert_eq!(written, exported.manifest);
    assert_eq!(written.files.len(), 2);
    for (precision, file) in &written.files {
        let cost = file.cost.unwrap();
        assert_eq!(cost.pictures, 24, "{precision}: {cost:?}");
        let least = if precision == "f16" { 0.9999 } else { 0.9 };
        assert!(cost.cosine_min >= least && cost.cosine_mean >= cost.cosine_min, "{precision}: {cost:?}");
        assert!(cost.cosine_mean < 1.0, "{precision} costs something: {cost:?}");
        assert!((0.5..=1.0).contains(&cost.top10_overlap) && (0.9..=1.0).contains(&cost.knn_agreement.unwrap()), "{precision}: {cost:?}");
    }

    let error = export(&checkpoint, &work.path().join("model"), &options(pictures.join("red"))).unwrap_err();
    assert!(error.to_string().contains("12 pictures that can be read"), "{error}");
    assert_eq!(dino_vision::model::Manifest::load(&exported.folder).unwrap(), written, "the folder is left as it was");
}

/// A ViT-S/16 with random weights and, as trained ones have them, a few channels that are far stronger than the others: behind the
/// norms, in the residual stream, and behind GELU.
fn with_outliers() -> Tensors {
    let (dim, depth, patch, tokens) = (384, 12, 16, 197);
    let mut random = StdRng::seed_from_u64(1);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], mean: f32, deviation: f32| {
        let normal = Normal::new(mean, deviation).unwrap();
        let data = (0..shape.iter().product()).map(|_| normal.sample(&mut random)).collect();
        tensors.insert(name, Tensor { shape: shape.to_vec(), data });
    };
    add("cls_token".into(), &[1, 1, dim], 0.0, 0.02);
    add("pos_embed".into(), &[1, tokens, dim], 0.0, 0.02);
    add("patch_embed.proj.weight".into(), &[dim, 3, patch, patch], 0.0, 0.03);
    add("patch_embed.proj.bias".into(), &[dim], 0.0, 0.02);
    for block in 0..depth {
        for norm in ["norm1", "norm2"] {
            add(format!("blocks.{block}.{norm}.weight"), &[dim], 1.0, 0.1);
            add(format!("blocks.{block}.{norm}.bias"), &[dim], 0.0, 0.1);
        }
        let layers = [
            ("attn.qkv", 3 * dim, dim, 0.04),
            ("attn.proj", dim, dim, 0.04),
            ("mlp.fc1", 4 * dim, dim, 0.04),
            ("mlp.fc2", dim, 4 * dim, 0.03),
        ];
        for (layer, out, input, deviation) in layers {
            add(format!("blocks.{block}.{layer}.weight"), &[out, input], 0.0, deviation);
            add(format!("blocks.{block}.{layer}.bias"), &[out], 0.0, 0.02);
        }
    }
    add("norm.weight".into(), &[dim], 1.0, 0.1);
    add("norm.bias".into(), &[dim], 0.0, 0.1);

    let scale_row = |tensors: &mut Tensors, name: &str, row: usize, factor: f32| {
        let tensor = tensors.get_mut(name).unwrap();
        let width = tensor.data.len() / tensor.shape[0];
        tensor.data[row * width..(row + 1) * width].iter_mut().for_each(|value| *value *= factor);
    };
    let scale_column = |tensors: &mut Tensors, name: &str, column: usize, factor: f32| {
        let tensor = tensors.get_mut(name).unwrap();
        let width = tensor.shape[1];
        tensor.data.iter_mut().skip(column).step_by(width).for_each(|value| *value *= factor);
    };
    for block in 0..depth {
        for (norm, layer) in [("norm1", "attn.qkv"), ("norm2", "mlp.fc1")] {
            for outlier in 0..6 {
                let channel = (block * 61 + outlier * 67) % dim;
                scale_row(&mut tensors, &format!("blocks.{block}.{norm}.weight"), channel, 30.0);
                scale_row(&mut tensors, &format!("blocks.{block}.{norm}.bias"), channel, 30.0);
                scale_column(&mut tensors, &format!("blocks.{block}.{layer}.weight"), channel, 1.0 / 30.0);
            }
        }
        for outlier in 0..8 {
            let channel = (block * 127 + outlier * 193) % (4 * dim);
            scale_row(&mut tensors, &format!("blocks.{block}.mlp.fc1.weight"), channel, 15.0);
            scale_row(&mut tensors, &format!("blocks.{block}.mlp.fc1.bias"), channel, 15.0);
            scale_column(&mut tensors, &format!("blocks.{block}.mlp.fc2.weight"), channel, 1.0 / 15.0);
        }
    }
    for (channel, shift) in [(7, 40.0), (90, -30.0), (200, 25.0)] {
        scale_row(&mut tensors, "blocks.2.mlp.fc2.weight", channel, 15.0);
        tensors.get_mut("blocks.2.mlp.fc2.bias").unwrap().data[channel] += shift;
    }
    tensors
}

#[test]
fn planted_outlier_channels_cost_little_in_every_precision() {
    let work = tempfile::tempdir().unwrap();
    let checkpoint = work.path().join("outliers.safetensors");
    write(&checkpoint, &with_outliers(), &[]);
    let options = Options { precisions: vec![Precision::F32, Precision::F16, Precision::Int8], measured: Measured::Bundled, ..heads(6) };
    let exported = export(&checkpoint, &work.path().join("model"), &options).unwrap();
    let cost = |precision: &str| exported.manifest.files[precision].cost.unwrap();
    let (half, int8) = (cost("f16"), cost("int8"));
    assert!(half.pictures == 75 && half.cosine_min >= 0.9999, "{half:?}");
    assert!(int8.cosine_min >= 0.995 && int8.top10_overlap >= 0.95, "{int8:?}");
    let others: Vec<_> = exported.notes.iter().filter(|note| !note.contains("--mean")).collect();
    assert!(others.is_empty(), "no layer had to go back to float32: {others:?}");
}
