//! What would be silently wrong is refused by the name of the tensor or setting, and what changes nothing is read.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::path::Path;

use common::torch::{Pickle, save};
use common::{Tensors, bundled_golden, little_endian, read, tensors, write};
use dino_train::weights::{self, Backbone, Checkpoint, Error, Options, Tensor};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

/// The tensors of a golden Hugging Face model.
fn golden(name: &str) -> Tensors {
    read(&bundled_golden().join("checkpoints").join(name).join("model.safetensors"))
}

/// The tensors of the public DINO `.pth` file.
fn dino() -> Tensors {
    tensors(&bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth"))
}

fn options() -> Options {
    Options { heads: Some(4), ..Options::default() }
}

fn load(folder: &Path, tensors: &Tensors, options: &Options) -> Result<Checkpoint, Error> {
    write(&folder.join("model.safetensors"), tensors, &[]);
    weights::load(folder, options)
}

#[track_caller]
fn refused(outcome: Result<Checkpoint, Error>, parts: &[&str]) {
    let error = outcome.map(|read| format!("read as {}", read.layout)).unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
}

/// The network that was read, with all of its numbers.
fn network(read: Checkpoint) -> String {
    format!("{:?}", read.backbone)
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor { shape: shape.to_vec(), data: vec![1.0; shape.iter().product()] }
}

/// Saves a state dictionary as PyTorch does, in which some tensors are 8-bit floats.
fn save_partly_unreadable(file: &Path, tensors: &Tensors, is_unreadable: impl Fn(&str) -> bool) {
    let mut pickle = Pickle::new().raw(b"}(");
    let mut storages = Vec::new();
    for (name, tensor) in tensors {
        pickle = pickle.text(name);
        if is_unreadable(name) {
            pickle = pickle.global("torch._utils", "_rebuild_tensor_v3").raw(b")R");
            continue;
        }
        let key = storages.len().to_string();
        pickle = pickle.tensor(&key, &tensor.shape);
        storages.push((key, little_endian(&tensor.data)));
    }
    save(file, &pickle.raw(b"u").end(), &storages);
}

#[test]
fn tensors_that_cannot_be_read_do_not_count_as_absent() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("pytorch_model.bin");
    let outcome = |tensors: &Tensors, part: &str| {
        save_partly_unreadable(&file, tensors, |name| name.contains(part));
        weights::load(&file, &options())
    };
    for (model, part) in [
        ("hf-dinov2", "layer_scale1"),
        ("hf-dinov2", "query.bias"),
        ("hf-dinov2", "encoder.layer.1.attention.attention.value.bias"),
        ("hf-dinov2-registers", "register_tokens"),
        ("hf-dinov2", "patch_embeddings.projection.weight"),
        ("hf-dinov2", "fc1.weight"),
        ("hf-dinov3-vit-gated", "gate_proj.weight"),
    ] {
        refused(outcome(&golden(model), part), &[part, "_rebuild_tensor_v3"]);
    }
    let mut normed = golden("hf-dinov2");
    normed.insert("encoder.layer.0.attention.q_norm.weight".to_owned(), ones(&[8]));
    refused(outcome(&normed, "q_norm"), &["not used: encoder.layer.0.attention.q_norm.weight"]);
    // A head is left out whatever it is.
    let mut headed = golden("hf-dinov2");
    headed.insert("classifier.weight".to_owned(), ones(&[1]));
    assert_eq!(outcome(&headed, "classifier").unwrap().report.unneeded, ["classifier.weight", "embeddings.mask_token"]);
}

#[test]
fn integers_are_no_weights() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("model.safetensors");
    let tensors = golden("hf-dinov2");
    let stored = |(name, tensor): (&String, &Tensor)| {
        if name.ends_with("fc1.weight") { (Dtype::I8, vec![1; tensor.data.len()]) } else { (Dtype::F32, little_endian(&tensor.data)) }
    };
    let bytes: Vec<_> = tensors.iter().map(stored).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), (dtype, bytes))| (name.clone(), TensorView::new(*dtype, tensor.shape.clone(), bytes).unwrap()));
    fs_err::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    refused(weights::load(&file, &options()), &["encoder.layer.0.mlp.fc1.weight holds I8", "float32"]);
}

#[test]
fn biases_in_two_places_are_refused() {
    let work = tempfile::tempdir().unwrap();
    let mut both = dino();
    for block in 0..2 {
        both.insert(format!("blocks.{block}.attn.q_bias"), ones(&[32]));
        both.insert(format!("blocks.{block}.attn.v_bias"), ones(&[32]));
    }
    refused(load(work.path(), &both, &options()), &["blocks.0.attn.q_bias is there beside a bias of qkv"]);
    let mut lone = both.clone();
    lone.retain(|name, _| !name.contains("qkv.bias") && !name.contains("v_bias"));
    refused(load(work.path(), &lone, &options()), &["blocks.1.attn.q_bias is there without v_bias"]);
    both.retain(|name, _| !name.contains("qkv.bias"));
    assert_eq!(load(work.path(), &both, &options()).unwrap().report.used, dino().len() + 2);
}

#[test]
fn words_inside_a_network_name_no_other_network() {
    let work = tempfile::tempdir().unwrap();
    for (name, model) in [
        ("blocks.0.attn.teacher_scale", dino()),
        ("teacher_scale", dino()),
        ("encoder.layer.1.attention.student_scale.weight", golden("hf-dinov2")),
    ] {
        let mut tensors = model;
        tensors.insert(name.to_owned(), ones(&[32]));
        refused(load(work.path(), &tensors, &options()), &[&format!("not used: {name}")]);
        let ignoring = Options { ignore: vec![name.to_owned()], ..options() };
        assert!(load(work.path(), &tensors, &ignoring).unwrap().report.unneeded.contains(&name.to_owned()));
    }
    // A wrapper does name one.
    let mut tensors = dino();
    tensors.insert("student_head.last_layer.weight".to_owned(), ones(&[32]));
    load(work.path(), &tensors, &options()).unwrap();
}

/// A ViT under DINO's names, of any width, with one block.
fn fused(dim: usize, rows: usize) -> Tensors {
    let number = |at: usize| ((at * 37 % 101) as f32 - 50.0) / 500.0;
    let tensor = |shape: &[usize]| Tensor { shape: shape.to_vec(), data: (0..shape.iter().product()).map(number).collect() };
    let mut tensors = Tensors::new();
    for (name, shape) in [
        ("patch_embed.proj.weight", vec![dim, 3, 4, 4]),
        ("patch_embed.proj.bias", vec![dim]),
        ("cls_token", vec![1, 1, dim]),
        ("norm.weight", vec![dim]),
        ("norm.bias", vec![dim]),
        ("blocks.0.norm1.weight", vec![dim]),
        ("blocks.0.norm1.bias", vec![dim]),
        ("blocks.0.norm2.weight", vec![dim]),
        ("blocks.0.norm2.bias", vec![dim]),
        ("blocks.0.attn.qkv.weight", vec![3 * dim, dim]),
        ("blocks.0.attn.qkv.bias", vec![3 * dim]),
        ("blocks.0.attn.proj.weight", vec![dim, dim]),
        ("blocks.0.attn.proj.bias", vec![dim]),
        ("blocks.0.mlp.fc1.weight", vec![rows, dim]),
        ("blocks.0.mlp.fc1.bias", vec![rows]),
        ("blocks.0.mlp.fc2.weight", vec![dim, rows]),
        ("blocks.0.mlp.fc2.bias", vec![dim]),
    ] {
        tensors.insert(name.to_owned(), tensor(&shape));
    }
    tensors
}

fn heads_of(read: &Checkpoint) -> usize {
    match &read.backbone {
        Backbone::Vit(vit) => vit.heads,
        _ => 0,
    }
}

#[test]
fn positions_are_said_or_the_checkpoint_is_refused() {
    let work = tempfile::tempdir().unwrap();
    refused(load(work.path(), &fused(128, 8), &Options::default()), &["no table of positions"]);
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = fused(128, 8);
        tensors.insert(name.to_owned(), ones(shape));
        tensors
    };
    // The periods of heads of 128 channels, and of 64.
    for (periods, heads) in [(32, 1), (16, 2)] {
        let read = load(work.path(), &with("rope_embed.periods", &[periods]), &Options::default()).unwrap();
        assert_eq!((read.layout, heads_of(&read)), ("dinov3-pth", heads));
    }
    refused(
        load(work.path(), &with("rope_embed.periods", &[32]), &Options { heads: Some(2), ..options() }),
        &["rope_embed.periods is [32]"],
    );
    assert_eq!(load(work.path(), &with("storage_tokens", &[1, 4, 128]), &Options::default()).unwrap().layout, "dinov3-pth");
    assert_eq!(load(work.path(), &with("reg_token", &[1, 4, 128]), &Options::default()).unwrap().layout, "timm-dinov3");
    fs_err::write(work.path().join("config.json"), r#"{"model_type": "dinov3_vit", "rope_theta": 100.0}"#).unwrap();
    assert_eq!(load(work.path(), &fused(128, 8), &Options::default()).unwrap().layout, "dinov3-pth");
}

#[test]
fn heads_of_timms_networks_are_timms() {
    let work = tempfile::tempdir().unwrap();
    let outcome = |config: Option<&str>, dim: usize, options: &Options| {
        let file = work.path().join("config.json");
        match config {
            Some(config) => fs_err::write(&file, config).unwrap(),
            None => drop(fs_err::remove_file(&file)),
        }
        let mut tensors = fused(dim, 8);
        tensors.insert("pos_embed".to_owned(), ones(&[1, 5, dim]));
        load(work.path(), &tensors, options)
    };
    for (config, dim, heads) in [
        (r#"{"architecture": "vit_huge_patch14_224"}"#, 1280, 16),
        (r#"{"architecture": "vit_small_patch16_224"}"#, 384, 6),
        (r#"{"architecture": "vit_small_patch16_224", "model_args": {"embed_dim": 192}}"#, 192, 6),
        (r#"{"architecture": "vit_small_patch16_224", "model_args": {"num_heads": 4, "init_values": 1e-5}}"#, 128, 4),
        (r#"{"num_heads": 8}"#, 128, 8),
    ] {
        assert_eq!(heads_of(&outcome(Some(config), dim, &Options::default()).unwrap()), heads, "{config}");
    }
    refused(outcome(Some(r#"{"architecture": "vit_base_patch16_224"}"#), 384, &Options::default()), &["768 wide", "--heads"]);
    assert_eq!(heads_of(&outcome(Some(r#"{"architecture": "vit_base_patch16_224"}"#), 384, &options()).unwrap()), 4);
    // Nothing says it, and releases of this width do not have heads of 64 channels.
    refused(outcome(None, 1280, &Options::default()), &["1280", "--heads"]);
    assert_eq!(heads_of(&outcome(None, 384, &Options::default()).unwrap()), 6);
}

/// What timm's `no_embed_class` is: registers have positions of their own, as in Virchow2, or have none, as in DINOv2.
#[test]
fn registers_may_have_positions() {
    let work = tempfile::tempdir().unwrap();
    fs_err::write(work.path().join("config.json"), r#"{"architecture": "vit_tiny_patch4_224", "model_args": {"reg_tokens": 2}}"#).unwrap();
    let mut tensors = fused(192, 8);
    for scale in ["ls1.gamma", "ls2.gamma"] {
        tensors.insert(format!("blocks.0.{scale}"), ones(&[192]));
    }
    tensors.insert("reg_token".to_owned(), ones(&[1, 2, 192]));
    tensors.insert("pos_embed".to_owned(), ones(&[1, 16, 192]));
    let without = load(work.path(), &tensors, &Options::default()).unwrap();
    tensors.insert("pos_embed".to_owned(), ones(&[1, 19, 192]));
    let with = load(work.path(), &tensors, &Options::default()).unwrap();
    let prefix = |read: Checkpoint| match read.backbone {
        Backbone::Vit(vit) => vit.prefix,
        _ => Tensor::default(),
    };
    let (without, with) = (prefix(without), prefix(with));
    assert_eq!(without.shape, [3, 192]);
    assert_eq!(with.data, without.data.iter().map(|value| value + 1.0).collect::<Vec<_>>());
    let plain = r#"{"architecture": "vit_tiny_patch4_224", "model_args": {"no_embed_class": true}}"#;
    fs_err::write(work.path().join("config.json"), plain).unwrap();
    refused(load(work.path(), &tensors, &Options::default()), &["pos_embed holds positions of 19 patches"]);
}

#[test]
fn a_configuration_beside_the_weights_counts_or_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let golden_config = |name: &str| -> serde_json::Value {
        let file = bundled_golden().join("checkpoints").join(name).join("config.json");
        serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap()
    };
    let outcome = |name: &str, setting: &str, value: serde_json::Value, tensors: &Tensors| {
        let mut config = golden_config(name);
        config[setting] = value;
        fs_err::write(work.path().join("config.json"), config.to_string()).unwrap();
        load(work.path(), tensors, &Options::default())
    };
    let (v2, v3) = (golden("hf-dinov2"), golden("hf-dinov3-vit"));
    for (setting, value) in [
        ("num_hidden_layers", json!(1)),
        ("qkv_bias", json!(false)),
        ("num_register_tokens", json!(4)),
        ("num_attention_heads", json!(5)),
        ("hidden_size", json!(64)),
        ("image_size", json!(518)),
        ("layer_norm_eps", json!("1e-2")),
    ] {
        refused(outcome("hf-dinov2", setting, value, &v2), &[setting]);
    }
    refused(outcome("hf-dinov3-vit-gated", "use_gated_mlp", json!(false), &golden("hf-dinov3-vit-gated")), &["use_gated_mlp"]);
    let mut keyed = v3.clone();
    for block in 0..2 {
        keyed.insert(format!("layer.{block}.attention.k_proj.bias"), ones(&[32]));
    }
    refused(outcome("hf-dinov3-vit", "num_channels", json!(3), &keyed), &["key_bias of config.json is false"]);
    // Understood: the numbers of the network follow.
    let plain = network(outcome("hf-dinov3-vit", "num_channels", json!(3), &v3).unwrap());
    assert_ne!(network(outcome("hf-dinov3-vit", "rope_theta", json!(10000.0), &v3).unwrap()), plain);
    assert_ne!(network(outcome("hf-dinov3-vit", "layer_norm_eps", json!(0.01), &v3).unwrap()), plain);
    assert_eq!(network(outcome("hf-dinov3-vit", "query_scale", json!(2.0), &v3).unwrap()), plain);
    // Meta's names beside transformers' configuration.
    let mut config = golden_config("hf-dino-vit");
    config["layer_norm_eps"] = json!(0.1);
    fs_err::write(work.path().join("config.json"), config.to_string()).unwrap();
    let Backbone::Vit(vit) = load(work.path(), &dino(), &Options::default()).unwrap().backbone else { panic!("a ViT") };
    assert_eq!((vit.heads, vit.eps), (4, 0.1));
    config["hidden_act"] = json!("relu");
    fs_err::write(work.path().join("config.json"), config.to_string()).unwrap();
    refused(load(work.path(), &dino(), &Options::default()), &["hidden_act"]);
}

#[test]
fn what_is_ignored_is_there_and_not_used() {
    let work = tempfile::tempdir().unwrap();
    let mut tensors = dino();
    tensors.insert("head.weight".to_owned(), ones(&[32]));
    let ignoring = |name: &str| load(work.path(), &tensors, &Options { ignore: vec![name.to_owned()], ..options() });
    for name in ["nosuch", "blocks.0", "norm.weight", "hea"] {
        refused(ignoring(name), &[&format!("--ignore {name} names no tensor")]);
    }
    ignoring("head").unwrap();
}
