//! What a graph gives beside its usual outputs, when it is asked to.

mod common;

use std::path::Path;

use common::{Tensors, array, assert_close, bundled_golden, heads, picture, run, session, session_of, tensors, write};
use dino_train::export::{Error, Exported, LastBlocks, Measured, Options, export};
use dino_train::weights::Interpolation;
use dino_vision::model::{Precision, RawSession};
use ndarray::{ArrayD, Axis, s};

/// The golden DINO backbone.
fn dino() -> Tensors {
    tensors(&bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth"))
}

/// Number of its blocks.
fn depth(tensors: &Tensors) -> usize {
    tensors.keys().filter(|name| name.ends_with(".norm1.weight")).count()
}

/// The same backbone without the blocks behind `count`.
fn cut(tensors: Tensors, count: usize) -> Tensors {
    let block = |name: &str| name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')?.0.parse::<usize>().ok());
    tensors.into_iter().filter(|(name, _)| block(name).is_none_or(|block| block < count)).collect()
}

fn export_dino(folder: &Path, tensors: &Tensors, options: Options) -> Result<Exported, Error> {
    let file = folder.join("weights.safetensors");
    write(&file, tensors, &[]);
    export(&file, &folder.join("model"), &Options { checkpoint: heads(4).checkpoint, ..options })
}

#[test]
fn a_layer_gives_what_a_backbone_that_ends_there_gives() {
    let work = tempfile::tempdir().unwrap();
    let depth = depth(&dino());
    let layers: Vec<_> = (1..=depth).rev().collect();
    let asked = Options { layers, last_blocks: LastBlocks::Exactly(2), ..Options::default() };
    let exported = export_dino(work.path(), &dino(), asked).unwrap();
    assert_eq!(exported.manifest.layers, (1..=depth as u32).collect::<Vec<_>>());
    let graph = fs_err::read(exported.folder.join("model.onnx")).unwrap();
    let pixels = picture(24, 40);
    let outputs = RawSession::of_bytes(&graph).unwrap().run(array(&pixels).into_dimensionality().unwrap().view()).unwrap();
    for layer in 1..=depth {
        let work = tempfile::tempdir().unwrap();
        let short = export_dino(work.path(), &cut(dino(), layer), Options::default()).unwrap();
        let expected: ArrayD<f32> = run(&mut session(&short.folder), &pixels).remove("tokens").unwrap();
        assert_close(&outputs[&format!("hidden_state_{layer}")], &expected, &format!("layer {layer}"));
    }
    let last = &outputs[&format!("hidden_state_{depth}")];
    assert_eq!(last, &outputs["last_hidden_state"]);
    assert_eq!(outputs["last_blocks"].index_axis(Axis(1), 1), last.slice(s![.., 0, ..]).into_dyn());
}

#[test]
fn blocks_that_are_not_there_are_refused_with_the_depth() {
    let work = tempfile::tempdir().unwrap();
    let depth = depth(&dino());
    let many = Options { last_blocks: LastBlocks::Exactly(99), ..Options::default() };
    let error = export_dino(work.path(), &dino(), many).unwrap_err().to_string();
    assert!(error.contains("99") && error.contains(&format!("{depth} blocks")), "{error}");
    for layer in [0, depth + 1] {
        let error = export_dino(work.path(), &dino(), Options { layers: vec![1, layer], ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains(&format!("--layers {layer}")), "{error}");
    }
    assert!(!work.path().join("model").exists());

    let resnet = bundled_golden().join("checkpoints/pth-dino-resnet");
    let asked = Options { layers: vec![1], ..Options::default() };
    let error = export(&resnet, &work.path().join("model"), &asked).unwrap_err().to_string();
    assert!(error.contains("--layers is for vision transformers"), "{error}");
}

#[test]
fn a_graph_of_one_size_gives_what_the_free_one_gives() {
    let golden = bundled_golden().join("checkpoints");
    for name in ["pth-dino-backbone", "hf-dino-vit", "hf-dinov2", "hf-dinov2-registers", "hf-dinov3-vit", "pth-dino-resnet"] {
        let work = tempfile::tempdir().unwrap();
        let config = fs_err::read_to_string(golden.join(name).join("config.json")).is_ok();
        let usual = if config { Options::default() } else { heads(4) };
        let free = export(&golden.join(name), &work.path().join("free"), &usual).unwrap();
        let patch = free.manifest.patch_size;
        // Once the grid of the table, where the releases' code takes another way.
        for size in [(3 * patch, 5 * patch), (7 * patch, 7 * patch), (2 * patch, patch)] {
            let out = work.path().join(format!("{}x{}", size.0, size.1));
            let fixed = export(&golden.join(name), &out, &Options { static_size: Some(size), ..usual.clone() }).unwrap();
            assert_eq!(fixed.manifest.static_size, Some(size));
            assert_eq!(fixed.manifest.transform.output_size(), Some(size));
            let pixels = picture(size.0 as usize, size.1 as usize);
            let (expected, found) = (run(&mut session(&free.folder), &pixels), run(&mut session(&fixed.folder), &pixels));
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (output, expected) in &expected {
                for (found, expected) in found[output].iter().zip(expected) {
                    assert!(
                        (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                        "{name} {size:?} {output}: {found}, not {expected}"
                    );
                }
            }
            let other = array(&picture(size.0 as usize, (size.1 + patch) as usize)).into_dimensionality().unwrap();
            let error = session(&fixed.folder).run(other.view()).unwrap_err().to_string();
            assert!(error.contains(&format!("{} x {} pixels alone", size.0, size.1)), "{error}");
        }
        let odd = Options { static_size: Some((patch, patch + 1)), ..usual };
        let error = export(&golden.join(name), &work.path().join("odd"), &odd).unwrap_err().to_string();
        assert!(error.contains("--static") && error.contains(&format!("multiple of {patch}")), "{error}");
    }
}

#[test]
fn all_precisions_take_one_size() {
    let work = tempfile::tempdir().unwrap();
    let precisions = vec![Precision::F32, Precision::F16, Precision::Int8];
    let asked = Options { static_size: Some((24, 40)), precisions: precisions.clone(), measured: Measured::Bundled, ..Options::default() };
    let exported = export_dino(work.path(), &dino(), asked).unwrap();
    for precision in precisions {
        let tokens = run(&mut session_of(&exported.folder, precision), &picture(24, 40)).remove("tokens").unwrap();
        assert_eq!(tokens.shape()[1], 1 + 24 * 40 / 64);
    }
    assert!(exported.manifest.files["int8"].cost.unwrap().cosine_min > 0.9);
}

#[test]
fn positions_are_resampled_as_the_flag_says() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("weights.safetensors");
    write(&file, &dino(), &[]);
    let mut options = heads(4);
    let plain = export(&file, &work.path().join("plain"), &options).unwrap();
    assert_eq!(plain.manifest.position_interpolation, "dino-bicubic-scale");
    assert!(plain.report.notes.iter().any(|note| note.contains("--positions bicubic-antialias")), "{:?}", plain.report.notes);

    options.checkpoint.positions = Some(Interpolation::Antialias);
    let picked = export(&file, &work.path().join("picked"), &options).unwrap();
    assert_eq!(picked.manifest.position_interpolation, "bicubic-antialias");
    assert!(picked.report.notes.iter().all(|note| !note.contains("--positions")), "{:?}", picked.report.notes);
    fs_err::write(work.path().join("config.json"), r#"{"architecture": "vit_tiny_patch8_224", "model_args": {"in_chans": 3}}"#).unwrap();
    let timm = export(&file, &work.path().join("timm"), &heads(4)).unwrap();
    let pixels = picture(24, 40);
    let [picked, timm] = [&picked, &timm].map(|exported| run(&mut session(&exported.folder), &pixels));
    assert_eq!(picked, timm);

    let rotary = bundled_golden().join("checkpoints/hf-dinov3-vit");
    options.checkpoint.heads = None;
    let error = export(&rotary, &work.path().join("rotary"), &options).unwrap_err().to_string();
    assert!(error.contains("--positions is for a learned table"), "{error}");
}

/// Pictures of a few random colours, which differ.
#[expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]
fn pictures(folder: &Path, count: u32) {
    fs_err::create_dir_all(folder).unwrap();
    for number in 0..count {
        let colour =
            |cell: u32, channel: u32| ((number * 7919 + cell * 104_729 + channel * 1_299_709 + 17).wrapping_mul(2_654_435_761) >> 24) as u8;
        let picture = image::RgbImage::from_fn(48, 48, |x, y| {
            let cell = x / 16 + 3 * (y / 16);
            image::Rgb([0, 1, 2].map(|channel| colour(cell, channel)))
        });
        picture.save(folder.join(format!("{number:03}.png"))).unwrap();
    }
}

#[test]
fn whitened_embeddings_have_no_correlations_left() {
    let work = tempfile::tempdir().unwrap();
    let (images, few) = (work.path().join("images"), work.path().join("few"));
    let plain = export_dino(work.path(), &dino(), Options::default()).unwrap();
    let dim = plain.manifest.dim as usize;
    let count = 5 * dim as u32;
    pictures(&images, count);
    pictures(&few, 9);
    let into = |whiten: &Path, out: &str| {
        let precisions = vec![Precision::F32, Precision::Int8];
        let options = Options {
            checkpoint: heads(4).checkpoint,
            whiten: Some(whiten.to_owned()),
            precisions,
            measured: Measured::Bundled,
            ..Options::default()
        };
        export(&work.path().join("weights.safetensors"), &work.path().join(out), &options)
    };
    let error = into(&few, "refused").unwrap_err().to_string();
    assert!(error.contains("few has 9 pictures") && error.contains(&format!("at least {}", 4 * dim)), "{error}");
    let whitened = into(&images, "whitened").unwrap();
    assert_eq!(whitened.manifest.whitening.as_ref().unwrap().pictures, count as usize);

    let raw = |folder: &Path| RawSession::of_bytes(&fs_err::read(folder.join("model.onnx")).unwrap()).unwrap();
    let (mut before, mut after) = (raw(&plain.folder), raw(&whitened.folder));
    let mut rows = Vec::new();
    for number in 0..count {
        let picture = image::open(images.join(format!("{number:03}.png"))).unwrap().to_rgb8();
        let pixels = plain.manifest.transform.apply(&picture).insert_axis(Axis(0));
        let [plain, given] = [&mut before, &mut after].map(|session| session.run(pixels.view()).unwrap());
        assert_eq!(plain["attention"], given["attention"]);
        let (plain, given) = (&plain["last_hidden_state"], &given["last_hidden_state"]);
        assert_eq!(plain.slice(s![.., 1.., ..]), given.slice(s![.., 1.., ..]), "the patches are as they were");
        rows.extend(given.slice(s![0, 0, ..]).iter().copied());
    }
    let rows = ndarray::Array2::from_shape_vec((count as usize, dim), rows).unwrap();
    assert!(rows.mean_axis(Axis(0)).unwrap().iter().all(|mean| mean.abs() < 1e-3));
    let covariance = rows.t().dot(&rows) / (count - 1) as f32;
    for ((i, j), value) in covariance.indexed_iter() {
        let want = if i == j { 1.0 } else { 0.0 };
        // Directions that hardly vary are computed from small differences.
        assert!((value - want).abs() < 0.02, "{i} {j}: {value}");
    }

    // Embeddings of the two are not comparable, and collections know.
    let fingerprint = |folder: &Path| dino_vision::model::Model::open(folder).unwrap().fingerprint(dino_vision::embedding::Pooling::Cls);
    assert_ne!(fingerprint(&plain.folder), fingerprint(&whitened.folder));
    assert_eq!(fingerprint(&whitened.folder), fingerprint(&into(&images, "again").unwrap().folder));

    let resnet = bundled_golden().join("checkpoints/pth-dino-resnet");
    let error =
        export(&resnet, &work.path().join("resnet"), &Options { whiten: Some(images), ..Options::default() }).unwrap_err().to_string();
    assert!(error.contains("--whiten is for vision transformers"), "{error}");
}
