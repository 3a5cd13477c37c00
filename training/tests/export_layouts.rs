//! The names under which the same backbone is saved, and what happens when they do not fit.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::path::Path;

use common::torch::save_state;
use common::{Tensors, array, assert_close, bundled_golden, heads, read, reading, run, session, tensors, write};
use dino_train::export::{Error, Exported, Options, export};
use dino_train::weights::{self, Error as Misread, Key, Tensor};
use dino_vision::segment::Method;
use dino_vision::transform::{Resize, Transform};

/// The tensors of the public DINO `.pth` file.
fn dino() -> Tensors {
    tensors(&bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth"))
}

/// The tensors of a golden Hugging Face model.
fn hugging_face(name: &str) -> Tensors {
    read(&bundled_golden().join("checkpoints").join(name).join("model.safetensors"))
}

fn renamed(tensors: Tensors, name: impl Fn(&str) -> String) -> Tensors {
    tensors.into_iter().map(|(old, tensor)| (name(&old), tensor)).collect()
}

/// Exports tensors as a file of their own.
fn export_tensors(folder: &Path, tensors: &Tensors, options: &Options) -> Result<Exported, Error> {
    let file = folder.join("weights.safetensors");
    write(&file, tensors, &[]);
    export(&file, &folder.join("model"), options)
}

fn model(exported: &Exported) -> Vec<u8> {
    fs_err::read(exported.folder.join("model.onnx")).unwrap()
}

/// Exports and compares with the golden outputs of another layout in the given cases.
fn assert_outputs(tensors: &Tensors, golden: &str, cases: &[&str], layout: &str) -> Exported {
    let work = tempfile::tempdir().unwrap();
    let exported = export_tensors(work.path(), tensors, &heads(4)).unwrap();
    assert_eq!(exported.manifest.source.layout, layout);
    assert_golden(&exported, golden, cases);
    exported
}

fn assert_golden(exported: &Exported, golden: &str, cases: &[&str]) {
    let expected = read(&bundled_golden().join("checkpoints").join(golden).join("expected.safetensors"));
    let mut session = session(&exported.folder);
    for case in cases {
        let outputs = run(&mut session, &expected[&format!("{case}.input")]);
        for output in ["tokens", "keys"] {
            let what = format!("{} {case}.{output}", exported.manifest.source.layout);
            assert_close(&outputs[output], &array(&expected[&format!("{case}.{output}")]), &what);
        }
    }
}

#[test]
fn known_prefixes_and_wrappers_give_the_same_model() {
    let work = tempfile::tempdir().unwrap();
    let plain = export_tensors(work.path(), &dino(), &heads(4)).unwrap();
    assert_eq!(plain.report.used, dino().len());
    let expected = model(&plain);
    for wrapper in ["", "teacher.", "student.", "state_dict.", "model.", "model.teacher."] {
        for prefix in ["", "module.", "backbone.", "module.backbone."] {
            let named = renamed(dino(), |name| format!("{wrapper}{prefix}{name}"));
            let exported = export_tensors(work.path(), &named, &heads(4)).unwrap();
            assert_eq!(model(&exported), expected, "{wrapper}{prefix}");
            assert_eq!(exported.report.used, dino().len());
        }
    }
    let chunked = renamed(dino(), |name| name.replacen("blocks.", "blocks.0.", 1));
    assert_eq!(model(&export_tensors(work.path(), &chunked, &heads(4)).unwrap()), expected);

    for parameters in [false, true] {
        let file = work.path().join("weights.pth");
        save_state(&file, &dino(), parameters);
        let exported = export(&file, &work.path().join("model"), &heads(4)).unwrap();
        assert_eq!(model(&exported), expected, "parameters: {parameters}");
    }
}

#[test]
fn any_one_root_is_found_and_said() {
    let work = tempfile::tempdir().unwrap();
    let expected = model(&export_tensors(work.path(), &dino(), &heads(4)).unwrap());
    for root in [
        "net.",
        "encoder.",
        "trunk.",
        "student_backbone.",
        "_orig_mod.",
        "module._orig_mod.",
        "_forward_module.",
        "model.backbone.",
        "model.model.",
        "state_dict.model.",
        "state_dict_ema.",
    ] {
        let mut named = renamed(dino(), |name| format!("{root}{name}"));
        named.insert("loss.weight".to_owned(), Tensor { shape: vec![1], data: vec![0.0] });
        let exported = export_tensors(work.path(), &named, &heads(4)).unwrap();
        assert_eq!(model(&exported), expected, "{root}");
        let said = exported.report.notes.iter().any(|note| note.contains(&format!("`{root}`")) || note.contains("student is taken"));
        assert!(said || root.split('.').all(|part| ["", "model", "backbone", "state_dict"].contains(&part)), "{:?}", exported.report.notes);
    }
}

#[test]
fn several_networks_are_told_apart_by_name_alone() {
    let work = tempfile::tempdir().unwrap();
    let changed = || {
        let mut tensors = dino();
        tensors.get_mut("norm.bias").unwrap().data[0] += 1.0;
        tensors
    };
    let two = |first: &str, second: &str| -> Tensors {
        let named = |tensors: Tensors, root: &str| renamed(tensors, |name| format!("{root}{name}"));
        named(dino(), first).into_iter().chain(named(changed(), second)).collect()
    };
    let take = |tensors: &Tensors, prefix: Option<&str>| {
        let options = reading(weights::Options { heads: Some(4), prefix: prefix.map(str::to_owned), ..weights::Options::default() });
        export_tensors(work.path(), tensors, &options)
    };
    let plain = model(&take(&dino(), None).unwrap());
    // timm's training: raw weights and their moving average.
    let timm = two("state_dict.", "state_dict_ema.");
    let raw = take(&timm, None).unwrap();
    assert_eq!(model(&raw), plain);
    assert!(raw.report.notes.iter().any(|note| note.contains("--prefix takes `state_dict_ema.`")), "{:?}", raw.report.notes);
    assert_eq!(model(&take(&timm, Some("state_dict_ema")).unwrap()), model(&take(&changed(), None).unwrap()));

    let queries = two("encoder_q.", "encoder_k.");
    let error = take(&queries, None).unwrap_err().to_string();
    assert!(error.contains("`encoder_k.`, `encoder_q.`") && error.contains("--prefix"), "{error}");
    assert_eq!(model(&take(&queries, Some("encoder_q.")).unwrap()), plain);
    let error = take(&queries, Some("encoder")).unwrap_err().to_string();
    assert!(error.contains("`encoder.`") && error.contains("`encoder_q.`"), "{error}");
}

#[test]
fn names_of_no_layout_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let named = renamed(dino(), |name| name.replace("patch_embed.", "stem."));
    let error = export_tensors(work.path(), &named, &heads(4)).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint(Misread::UnknownLayout(names)) if names.len() == dino().len()));
    assert!(error.to_string().contains("blocks.0.attn.qkv.weight"), "{error}");
    assert!(!work.path().join("model").exists());
}

#[test]
fn every_missing_and_misshaped_tensor_is_named() {
    let work = tempfile::tempdir().unwrap();
    let mut tensors = dino();
    let count = tensors.len();
    tensors.retain(|name, _| !name.starts_with("blocks.0."));
    let lost = count - tensors.len();
    let bias = tensors.get_mut("norm.bias").unwrap();
    bias.data.push(0.0);
    bias.shape[0] += 1;
    let error = export_tensors(work.path(), &tensors, &heads(4)).unwrap_err();
    let Error::Checkpoint(Misread::Misfit { missing, wrong, .. }) = &error else { panic!("{error}") };
    assert!(missing.contains(&"blocks.0.norm1.weight".to_owned()), "{missing:?}");
    // The width of the lost MLP is unknown, its layers are still named.
    assert_eq!(missing.len(), lost, "{missing:?}");
    assert_eq!(wrong, &["norm.bias is [33], the layout needs [32]"]);
    assert_eq!(fs_err::read_dir(work.path()).unwrap().count(), 1, "only the weights are left");
}

#[test]
fn a_missing_last_block_is_noticed_where_the_depth_is_known() {
    let golden = bundled_golden().join("checkpoints/hf-dinov2");
    let work = tempfile::tempdir().unwrap();
    let mut tensors = hugging_face("hf-dinov2");
    tensors.retain(|name, _| !name.starts_with("encoder.layer.1."));
    write(&work.path().join("model.safetensors"), &tensors, &[]);
    fs_err::copy(golden.join("config.json"), work.path().join("config.json")).unwrap();
    let error = export(work.path(), &work.path().join("model"), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("missing: encoder.layer.1.mlp.fc1.weight"), "{error}");
}

#[test]
fn tensors_inside_the_network_are_used_or_the_checkpoint_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let plain = model(&export_tensors(work.path(), &dino(), &heads(4)).unwrap());
    let mut tensors = dino();
    tensors.insert("blocks.0.attn.surprise".to_owned(), Tensor { shape: vec![1], data: vec![f32::NAN] });
    tensors.insert("head.mlp.0.weight".to_owned(), Tensor { shape: vec![1], data: vec![0.0] });
    let error = export_tensors(work.path(), &tensors, &heads(4)).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint(Misread::Unused { names, .. }) if names == &["blocks.0.attn.surprise"]), "{error}");
    assert!(error.to_string().contains("--ignore"), "{error}");
    // What timm calls `qk_norm`, `scale_attn_norm` and `norm_pre`, and the squeezing of SE networks.
    for name in [
        "blocks.0.attn.q_norm.weight",
        "blocks.1.attn.norm.weight",
        "blocks.0.mlp.norm.weight",
        "norm_pre.weight",
        "blocks.0.mlp.fc.weight",
    ] {
        let mut tensors = dino();
        tensors.insert(name.to_owned(), Tensor { shape: vec![32], data: vec![1.0; 32] });
        let error = export_tensors(work.path(), &tensors, &heads(4)).unwrap_err().to_string();
        assert!(error.contains(&format!("not used: {name}")), "{error}");
    }

    for ignored in ["blocks.0.attn.surprise", "blocks.0.attn.surprise.", "blocks.0.attn"] {
        let options = reading(weights::Options { heads: Some(4), ignore: vec![ignored.to_owned()], ..weights::Options::default() });
        let exported = export_tensors(work.path(), &tensors, &options).unwrap();
        assert_eq!(exported.report.unneeded, ["blocks.0.attn.surprise", "head.mlp.0.weight"]);
        assert_eq!(model(&exported), plain);
    }
}

#[test]
fn teacher_or_student_by_choice() {
    let checkpoint = bundled_golden().join("checkpoints/pth-dino-full-checkpoint");
    let work = tempfile::tempdir().unwrap();
    let chosen = |key| reading(weights::Options { heads: Some(4), key, ..weights::Options::default() });
    let take = |key| {
        let exported = export(&checkpoint, &work.path().join("model"), &chosen(key)).unwrap();
        (model(&exported), exported.report.notes.len())
    };
    let (default, notes) = take(None);
    assert_eq!(notes, 1, "the choice is said");
    assert_eq!(default, take(Some(Key::Teacher)).0);
    assert_ne!(default, take(Some(Key::Student)).0);

    let lone = export_tensors(work.path(), &dino(), &chosen(Some(Key::Student)));
    assert!(lone.unwrap_err().to_string().contains("no student"));
}

#[test]
fn heads_are_never_guessed_wrong() {
    let work = tempfile::tempdir().unwrap();
    let error = export_tensors(work.path(), &dino(), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("--heads N"), "{error}");
    let error = export_tensors(work.path(), &dino(), &heads(5)).unwrap_err();
    assert!(error.to_string().contains("does not divide the width 32"), "{error}");

    // The trainer's own checkpoints say it.
    let file = work.path().join("checkpoint-0002.safetensors");
    let named = renamed(dino(), |name| format!("teacher.backbone.{name}"));
    let metadata = r#"{"arch": "vit_tiny", "patch_size": 8, "dim": 32, "depth": 2, "heads": 8, "img_size": 48,
        "transform": {"resize": {"exact": [48, 48]}, "crop": null, "interpolation": "bilinear",
                      "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
    write(&file, &named, &[("dino", metadata)]);
    // An older one beside it, which is not to be taken.
    write(&work.path().join("checkpoint-0001.safetensors"), &Tensors::new(), &[]);
    let exported = export(work.path(), &work.path().join("model"), &Options::default()).unwrap();
    assert_eq!(exported.manifest.heads, 8);
    assert_eq!(exported.manifest.source.file, "checkpoint-0002.safetensors");
    assert_eq!(exported.manifest.transform.crop, None);
}

#[test]
fn other_families_are_refused_by_name() {
    let work = tempfile::tempdir().unwrap();
    let one = Tensor { shape: vec![1], data: vec![0.0] };
    let tensors = Tensors::from([("patch_embed.proj.0.0.weight".to_owned(), one)]);
    let error = export_tensors(work.path(), &tensors, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("XCiT"), "{error}");
}

/// Stacks queries, keys and values as the fused layouts do.
fn fused(tensors: &Tensors, block: &str, roles: [&str; 3], kind: &str) -> Option<Tensor> {
    let parts = roles.map(|role| tensors.get(&format!("{block}.{role}.{kind}")));
    let mut shape = parts.iter().flatten().next()?.shape.clone();
    let rows = shape[0];
    let data = parts.iter().flat_map(|part| part.map_or_else(|| vec![0.0; rows], |part| part.data.clone())).collect();
    shape[0] = 3 * rows;
    Some(Tensor { shape, data })
}

/// A golden DINOv2 under the names of Meta's files.
fn meta_dinov2(name: &str) -> Tensors {
    let source = hugging_face(name);
    let mut tensors = Tensors::new();
    for block in 0..2 {
        let from = format!("encoder.layer.{block}.attention.attention");
        for kind in ["weight", "bias"] {
            let qkv = fused(&source, &from, ["query", "key", "value"], kind).unwrap();
            tensors.insert(format!("blocks.{block}.attn.qkv.{kind}"), qkv);
        }
    }
    let others = source.into_iter().filter(|(name, _)| !name.contains("attention.attention")).map(|(name, tensor)| {
        let name = name.replace("encoder.layer.", "blocks.").replace("attention.output.dense", "attn.proj");
        let name = name.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma");
        let name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj");
        let name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "");
        let name = name.replace("layernorm.", "norm.").replace("weights_in", "w12").replace("weights_out", "w3");
        (name, tensor)
    });
    tensors.extend(others);
    tensors
}

/// The names of a golden model in the modules of transformers 5, as its `state_dict` has them.
fn transformers_5(name: &str) -> Tensors {
    let vit = name == "hf-dino-vit";
    let attention = [
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ];
    let of_vit = [("encoder.layer.", "layers."), ("intermediate.dense", "mlp.fc1"), (".output.dense", ".mlp.fc2")];
    let mut tensors = renamed(hugging_face(name), |name| {
        let name = replaced(name, &attention);
        if vit { replaced(&name, &of_vit) } else { name.replace("mlp.weights_out", "mlp.down_proj") }
    });
    // The packed gate and value of a SwiGLU are two layers there.
    let packed: Vec<String> = tensors.keys().filter(|name| name.contains("mlp.weights_in")).cloned().collect();
    for name in packed {
        let mut gate = tensors.remove(&name).unwrap();
        let value = gate.data.split_off(gate.data.len() / 2);
        gate.shape[0] /= 2;
        let value = Tensor { shape: gate.shape.clone(), data: value };
        tensors.insert(name.replace("weights_in", "gate_proj"), gate);
        tensors.insert(name.replace("weights_in", "up_proj"), value);
    }
    tensors
}

#[test]
fn the_state_dicts_of_transformers_5() {
    let cases = ["native", "small", "wide"];
    for (name, layout) in [
        ("hf-dino-vit", "hf-dino-vit"),
        ("hf-dinov2", "hf-dinov2"),
        ("hf-dinov2-swiglu", "hf-dinov2"),
        ("hf-dinov2-registers", "hf-dinov2-registers"),
    ] {
        assert_outputs(&transformers_5(name), name, &cases, layout);
        let wrapped = renamed(transformers_5(name), |name| format!("state_dict.model.{name}"));
        assert_outputs(&wrapped, name, &cases[..1], layout);
        // The configuration of a SwiGLU says GELU, which it does not follow.
        let work = tempfile::tempdir().unwrap();
        fs_err::copy(bundled_golden().join("checkpoints").join(name).join("config.json"), work.path().join("config.json")).unwrap();
        let exported = export_tensors(work.path(), &transformers_5(name), &Options::default()).unwrap();
        assert_golden(&exported, name, &cases[..1]);
    }
}

#[test]
fn a_configuration_of_another_network_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let refused = |config: &str, tensors: &Tensors| {
        fs_err::write(work.path().join("config.json"), config).unwrap();
        export_tensors(work.path(), tensors, &heads(4)).unwrap_err().to_string()
    };
    let quick = r#"{"architecture": "vit_base_patch16_clip_quickgelu_224"}"#;
    assert!(refused(quick, &dino()).contains("quickgelu"));
    assert!(refused(r#"{"model_type": "ijepa"}"#, &hugging_face("hf-dino-vit")).contains("ijepa"));
    let dinov2 = hugging_face("hf-dinov2");
    assert!(refused(r#"{"model_type": "dinov2", "hidden_act": "quick_gelu"}"#, &dinov2).contains("quick_gelu"));
    assert!(refused(r#"{"model_type": "dinov2", "hidden_act": "silu"}"#, &dinov2).contains("hidden_act"));
}

#[test]
fn the_transform_is_read_given_or_said_to_be_assumed() {
    let work = tempfile::tempdir().unwrap();
    let assumed = export_tensors(work.path(), &dino(), &heads(4)).unwrap();
    assert!(assumed.notes.iter().any(|note| note.contains("--mean")), "{:?}", assumed.notes);
    let timm = r#"{"architecture": "vit_small_patch16_224", "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.9,
        "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
    fs_err::write(work.path().join("config.json"), timm).unwrap();
    let read = export_tensors(work.path(), &dino(), &heads(4)).unwrap();
    assert_eq!(read.manifest.transform.resize, Resize::Shorter(248));
    assert!(read.notes.is_empty(), "{:?}", read.notes);
    let transform = weights::TransformOptions { size: Some(100), crop: Some(96), mean: Some([0.1; 3]), ..Default::default() };
    let options = reading(weights::Options { heads: Some(4), transform, ..weights::Options::default() });
    let given = export_tensors(work.path(), &dino(), &options).unwrap();
    // What is not given is read.
    let expected = Transform { resize: Resize::Shorter(100), crop: Some((96, 96)), mean: [0.1; 3], ..read.manifest.transform };
    assert_eq!(given.manifest.transform, expected);
}

#[test]
fn metas_dinov2_names() {
    // Off the native grid its own code passes a scale factor, which Hugging Face's does not.
    let without = assert_outputs(&meta_dinov2("hf-dinov2"), "hf-dinov2", &["native"], "dinov2-pth");
    assert_eq!(without.manifest.segment, None);
    assert_outputs(&meta_dinov2("hf-dinov2-swiglu"), "hf-dinov2-swiglu", &["native"], "dinov2-pth");
    let cases = ["native", "small", "wide"];
    let with = assert_outputs(&meta_dinov2("hf-dinov2-registers"), "hf-dinov2-registers", &cases, "dinov2-registers-pth");
    // The publications' choice, with no figures of ours.
    let masks = with.manifest.segment.unwrap();
    assert_eq!((masks.method, masks.figures), (Method::Ncut, None));
}

#[test]
fn timms_dino_and_dinov2_names() {
    let mut tensors = meta_dinov2("hf-dinov2");
    tensors.remove("mask_token");
    assert_outputs(&tensors, "hf-dinov2", &["native"], "timm-dinov2");

    // With registers, CLS already carries its position, and the table is that of the patches.
    let mut tensors = meta_dinov2("hf-dinov2-registers");
    tensors.remove("mask_token");
    let registers = tensors.remove("register_tokens").unwrap();
    tensors.insert("reg_token".to_owned(), registers);
    let mut table = tensors.remove("pos_embed").unwrap();
    let dim = table.shape[2];
    let cls: Vec<f32> = table.data.drain(..dim).collect();
    table.shape[1] -= 1;
    tensors.insert("pos_embed".to_owned(), table);
    for (value, position) in tensors.get_mut("cls_token").unwrap().data.iter_mut().zip(cls) {
        *value += position;
    }
    assert_outputs(&tensors, "hf-dinov2-registers", &["native", "small", "wide"], "timm-dinov2");

    // The packed SwiGLU of the giant has the names of a plain MLP.
    let mut tensors = meta_dinov2("hf-dinov2-swiglu");
    tensors.remove("mask_token");
    let tensors = renamed(tensors, |name| name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"));
    assert_outputs(&tensors, "hf-dinov2-swiglu", &["native"], "timm-dinov2");

    // DINO's names are timm's; only its configuration tells them apart.
    let work = tempfile::tempdir().unwrap();
    fs_err::write(work.path().join("config.json"), r#"{"architecture": "vit_small_patch16_224"}"#).unwrap();
    let exported = export_tensors(work.path(), &dino(), &heads(4)).unwrap();
    assert_eq!(exported.manifest.source.layout, "timm-dino");
    assert_eq!(exported.manifest.position_interpolation, "bicubic-antialias");
    assert_golden(&exported, "pth-dino-backbone", &["native"]);
}

/// A golden DINOv3 under names that fuse queries, keys and values; the biases are left out.
fn fused_dinov3(name: &str) -> Tensors {
    let source = hugging_face(name);
    let mut tensors = Tensors::new();
    for block in 0..2 {
        let from = format!("layer.{block}.attention");
        let qkv = fused(&source, &from, ["q_proj", "k_proj", "v_proj"], "weight").unwrap();
        tensors.insert(format!("blocks.{block}.attn.qkv.weight"), qkv);
    }
    let is_qkv = |name: &str| ["q_proj", "k_proj", "v_proj"].iter().any(|role| name.contains(role));
    tensors.extend(source.into_iter().filter(|(name, _)| !is_qkv(name)).map(|(name, tensor)| {
        let name = name.replace("attention.o_proj", "attn.proj").replace("layer.", "blocks.");
        let name = name.replace("embeddings.patch_embeddings", "patch_embed.proj").replace("embeddings.", "");
        (name, tensor)
    }));
    tensors
}

fn replaced(name: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Meta's names of DINOv3, without biases of the attention's input.
fn meta_dinov3(name: &str, mlp: &[(&str, &str)]) -> Tensors {
    let pairs = [("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"), ("register_tokens", "storage_tokens")];
    let mut tensors = renamed(fused_dinov3(name), |name| replaced(&replaced(name, &pairs), mlp));
    let periods = (0..2).map(|index| 100_f32.powf(index as f32 / 2.0)).collect();
    tensors.insert("rope_embed.periods".to_owned(), Tensor { shape: vec![2], data: periods });
    tensors
}

const PLAIN_MLP: [(&str, &str); 2] = [("mlp.up_proj", "mlp.fc1"), ("mlp.down_proj", "mlp.fc2")];
const GATED_MLP: [(&str, &str); 3] = [("mlp.gate_proj", "mlp.w1"), ("mlp.up_proj", "mlp.w2"), ("mlp.down_proj", "mlp.w3")];

/// Fills the fused biases by a function of block and position, and their masks by one of the third.
fn with_biases(mut tensors: Tensors, bias: impl Fn(usize, usize) -> f32, mask: Option<[f32; 3]>) -> Tensors {
    for block in 0..2 {
        let rows = tensors[&format!("blocks.{block}.attn.qkv.weight")].shape[0];
        let data = (0..rows).map(|row| bias(block, row)).collect();
        tensors.insert(format!("blocks.{block}.attn.qkv.bias"), Tensor { shape: vec![rows], data });
        if let Some(mask) = mask {
            let data = (0..rows).map(|row| mask[row * 3 / rows]).collect();
            tensors.insert(format!("blocks.{block}.attn.qkv.bias_mask"), Tensor { shape: vec![rows], data });
        }
    }
    tensors
}

/// The golden biases of queries and values, with keys' left at zero.
fn golden_bias(name: &str) -> impl Fn(usize, usize) -> f32 {
    let source = hugging_face(name);
    move |block, row| {
        let dim = source["norm.weight"].data.len();
        let role = ["q_proj", "k_proj", "v_proj"][row / dim];
        source.get(&format!("layer.{block}.attention.{role}.bias")).map_or(0.0, |bias| bias.data[row % dim])
    }
}

#[test]
fn metas_dinov3_names() {
    let cases = ["native", "small", "wide"];
    let plain = with_biases(meta_dinov3("hf-dinov3-vit", &PLAIN_MLP), golden_bias("hf-dinov3-vit"), None);
    assert_outputs(&plain, "hf-dinov3-vit", &cases, "dinov3-pth");
    let name = "hf-dinov3-vit-gated";
    let gated = with_biases(meta_dinov3(name, &GATED_MLP), golden_bias(name), Some([1.0, 0.0, 1.0]));
    assert_outputs(&gated, name, &cases, "dinov3-pth");
}

#[test]
fn timms_dinov3_names() {
    let name = "hf-dinov3-vit-gated";
    let pairs = [
        ("layer_scale1.lambda1", "gamma_1"),
        ("layer_scale2.lambda1", "gamma_2"),
        ("register_tokens", "reg_token"),
        ("mlp.gate_proj", "mlp.fc1_g"),
        ("mlp.up_proj", "mlp.fc1_x"),
        ("mlp.down_proj", "mlp.fc2"),
    ];
    let mut tensors = renamed(fused_dinov3(name), |name| replaced(name, &pairs));
    for (name, tensor) in hugging_face(name) {
        if let Some((block, role)) = name.strip_suffix("_proj.bias").and_then(|name| name.split_once(".attention."))
            && role != "o"
        {
            tensors.insert(format!("{}.attn.{role}_bias", block.replace("layer", "blocks")), tensor);
        }
    }
    assert_outputs(&tensors, name, &["native", "small", "wide"], "timm-dinov3");
}

#[test]
fn the_mask_over_dinov3s_bias_counts() {
    let noise = |block: usize, row: usize| ((block * 96 + row) * 37 % 101) as f32 / 50.0 - 1.0;
    let base = || meta_dinov3("hf-dinov3-vit", &PLAIN_MLP);
    let work = tempfile::tempdir().unwrap();
    let outputs = |tensors: &Tensors| {
        let exported = export_tensors(work.path(), tensors, &heads(4)).unwrap();
        run(&mut session(&exported.folder), &common::picture(48, 80))
    };
    let keyless = |block, row| {
        if (32..64).contains(&row) { 0.0 } else { noise(block, row) }
    };

    let masked = outputs(&with_biases(base(), noise, Some([1.0, 0.0, 1.0])));
    assert_eq!(masked, outputs(&with_biases(base(), keyless, None)));
    assert_eq!(outputs(&with_biases(base(), noise, Some([0.0; 3]))), outputs(&base()));
    // Without a mask the bias counts as it is.
    assert_ne!(outputs(&with_biases(base(), noise, None)), masked);

    let broken = with_biases(base(), noise, Some([1.0, f32::NAN, 1.0]));
    fs_err::remove_dir_all(work.path().join("model")).unwrap();
    let error = export_tensors(work.path(), &broken, &heads(4)).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint(Misread::NotFinite(names)) if names.len() == 2), "{error}");
    assert!(error.to_string().contains("blocks.0.attn.qkv.bias_mask"), "{error}");
    assert!(!work.path().join("model").exists());
}

#[test]
fn a_model_that_overflows_is_not_written() {
    let work = tempfile::tempdir().unwrap();
    let mut tensors = dino();
    tensors.get_mut("norm.weight").unwrap().data.fill(f32::MAX);
    let error = export_tensors(work.path(), &tensors, &heads(4)).unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)), "{error}");
    assert_eq!(fs_err::read_dir(work.path()).unwrap().count(), 1, "only the weights are left");
}

#[test]
fn only_a_model_folder_is_replaced() {
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("model");
    fs_err::create_dir(&out).unwrap();
    export_tensors(work.path(), &dino(), &heads(4)).unwrap();
    export_tensors(work.path(), &dino(), &heads(8)).unwrap();
    assert!(fs_err::read_to_string(out.join("manifest.json")).unwrap().contains("\"heads\": 8"));

    fs_err::remove_file(out.join("manifest.json")).unwrap();
    let error = export_tensors(work.path(), &dino(), &heads(4)).unwrap_err();
    assert!(matches!(error, Error::Occupied(_)), "{error}");
    assert!(out.join("model.onnx").exists());
}
