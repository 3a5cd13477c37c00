//! Configurations of public repositories, and what others would change.

use serde_json::{Value as Json, json};

use super::super::super::spec::{Block, Conv, Interpolation, Linear, Norm, Resnet};
use super::super::super::store::Tensor;
use super::*;

/// Sizes of a ViT, without its numbers.
#[derive(Clone, Copy)]
struct Shape {
    dim: usize,
    depth: usize,
    heads: usize,
    patch: usize,
    /// Patches along a side of the learned table; 0 for rotary positions.
    side: usize,
    registers: usize,
    /// Rows of the first layer of an MLP.
    rows: usize,
    gate: Option<Activation>,
}

impl Shape {
    fn vit(self) -> Backbone {
        let weight = |shape: &[usize]| Tensor { shape: shape.to_vec(), data: Vec::new() };
        let layer = |rows: usize| Linear { weight: weight(&[rows, self.dim]), bias: Some(Vec::new()) };
        let mlp = match self.gate {
            None => Mlp::Plain { input: layer(self.rows), output: layer(self.dim) },
            Some(activation) => Mlp::Gated { input: layer(self.rows), activation, output: layer(self.dim) },
        };
        let (norm1, norm2) = (Norm::default(), Norm::default());
        let block = Block { norm1, qkv: layer(3 * self.dim), proj: layer(self.dim), norm2, mlp };
        let positions = if self.side == 0 {
            Positions::Rotary { periods: Vec::new() }
        } else {
            Positions::Learned { table: weight(&[self.side, self.side, self.dim]), interpolation: Interpolation::Antialias }
        };
        Backbone::Vit(Vit {
            patch_size: self.patch,
            dim: self.dim,
            heads: self.heads,
            eps: 1e-6,
            stem: Vec::new(),
            patch: Linear::default(),
            prefix: weight(&[1 + self.registers, self.dim]),
            positions,
            blocks: vec![block; self.depth],
            norm: Norm::default(),
        })
    }
}

const SMALL: Shape = Shape { dim: 384, depth: 12, heads: 6, patch: 16, side: 14, registers: 0, rows: 1536, gate: None };
const GIANT: Shape = Shape { dim: 1536, depth: 40, heads: 24, patch: 14, side: 37, registers: 0, rows: 8192, gate: Some(Activation::Silu) };

fn read(json: &Json, names: Names) -> Result<Config, Error> {
    Config::read(Some(json), &Store::default(), names)
}

/// Reads a configuration and compares it with a network.
fn understood(json: &Json, names: Names, shape: Shape) -> Result<Config, Error> {
    let config = read(json, names)?;
    let heads = config.heads(shape.dim)?;
    assert!(heads.is_none_or(|heads| heads == shape.heads), "{heads:?} heads of {json}");
    config.eps()?;
    config.rope_base()?;
    config.check(&shape.vit())?;
    Ok(config)
}

#[track_caller]
fn refused(outcome: Result<Config, Error>, setting: &str) {
    let error = outcome.map(|_| "read").unwrap_err().to_string();
    assert!(error.contains(setting), "{setting}: {error}");
}

/// `base` with other settings; null takes one away.
fn with(base: &Json, changes: &Json) -> Json {
    let mut json = base.clone();
    for (name, value) in changes.as_object().unwrap() {
        json[name] = value.clone();
    }
    json
}

fn dino() -> Json {
    json!({
        "_name_or_path": "/models/dino", "architectures": ["ViTModel"], "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0, "hidden_size": 384, "image_size": 224, "initializer_range": 0.02, "intermediate_size": 1536,
        "layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 6, "num_channels": 3, "num_hidden_layers": 12,
        "patch_size": 16, "qkv_bias": true, "torch_dtype": "float32", "transformers_version": "4.11.0.dev0"
    })
}

fn dinov2() -> Json {
    json!({
        "apply_layernorm": true, "architectures": ["Dinov2Model"], "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 384, "image_size": 518, "initializer_range": 0.02,
        "layer_norm_eps": 1e-06, "layerscale_value": 1.0, "mlp_ratio": 4, "model_type": "dinov2", "num_attention_heads": 6,
        "num_channels": 3, "num_hidden_layers": 12, "out_features": ["stage12"], "out_indices": [12], "patch_size": 14,
        "qkv_bias": true, "reshape_hidden_states": true, "stage_names": ["stem", "stage1"], "torch_dtype": "float32",
        "transformers_version": "4.32.0.dev0", "use_swiglu_ffn": false
    })
}

fn dinov3() -> Json {
    json!({
        "architectures": ["DINOv3ViTModel"], "attention_dropout": 0.0, "drop_path_rate": 0.0, "hidden_act": "gelu",
        "hidden_size": 384, "image_size": 224, "initializer_range": 0.02, "intermediate_size": 1536, "key_bias": false,
        "layer_norm_eps": 1e-05, "layerscale_value": 1.0, "mlp_bias": true, "model_type": "dinov3_vit", "num_attention_heads": 6,
        "num_channels": 3, "num_hidden_layers": 12, "num_register_tokens": 4, "patch_size": 16, "pos_embed_jitter": null,
        "pos_embed_rescale": 2.0, "pos_embed_shift": null, "proj_bias": true, "query_bias": true, "rope_theta": 100.0,
        "torch_dtype": "float32", "transformers_version": "4.56.0.dev0", "use_gated_mlp": false, "value_bias": true
    })
}

/// A repository of timm's, or one in its way, as those of pathology are.
fn timm(architecture: &str, dim: usize, arguments: Json) -> Json {
    json!({
        "architecture": architecture, "num_classes": 0, "num_features": dim, "global_pool": "token", "model_args": arguments,
        "pretrained_cfg": {
            "tag": "x", "custom_load": false, "input_size": [3, 224, 224], "fixed_input_size": true, "interpolation": "bicubic",
            "crop_pct": 1.0, "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 0,
            "pool_size": null, "first_conv": "patch_embed.proj", "classifier": "head", "license": "apache-2.0"
        }
    })
}

#[test]
fn public_repositories_of_transformers_are_understood() {
    let vit = |dim, heads, patch| {
        let changes = json!({"hidden_size": dim, "num_attention_heads": heads, "patch_size": patch, "intermediate_size": 4 * dim});
        (with(&dino(), &changes), Shape { dim, heads, patch, side: 224 / patch, rows: 4 * dim, ..SMALL })
    };
    for (json, shape) in [vit(384, 6, 16), vit(384, 6, 8), vit(768, 12, 16), vit(768, 12, 8)] {
        let config = understood(&json, Names::HuggingFace, shape).unwrap();
        assert_eq!((config.eps().unwrap(), config.depth(shape.dim).unwrap()), (Some(1e-12), Some(12)));
    }
    for (dim, depth, heads) in [(384, 12, 6), (768, 12, 12), (1024, 24, 16)] {
        let sizes = json!({"hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": heads});
        let shape = Shape { dim, depth, heads, patch: 14, side: 37, rows: 4 * dim, ..SMALL };
        understood(&with(&dinov2(), &sizes), Names::HuggingFace, shape).unwrap();
        let kind = json!({"model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"], "num_register_tokens": 4});
        let registers = Shape { registers: 4, ..shape };
        understood(&with(&with(&dinov2(), &sizes), &kind), Names::HuggingFace, registers).unwrap();
        // The same beside Meta's own file, and without a model_type.
        understood(&with(&dinov2(), &sizes), Names::Fused, shape).unwrap();
        understood(&with(&with(&dinov2(), &sizes), &json!({"model_type": null})), Names::HuggingFace, shape).unwrap();
    }
    let giant = json!({"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": true});
    understood(&with(&dinov2(), &giant), Names::HuggingFace, GIANT).unwrap();
    let rotary = Shape { side: 0, registers: 4, ..SMALL };
    let silu = Some(Activation::Silu);
    for (changes, shape) in [
        (json!({}), rotary),
        (json!({"use_gated_mlp": true, "hidden_act": "silu"}), Shape { rows: 3072, gate: silu, ..rotary }),
        (
            json!({"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120, "use_gated_mlp": true, "hidden_act": "silu"}),
            Shape { dim: 1280, depth: 32, heads: 20, rows: 10240, gate: silu, ..rotary },
        ),
        (
            json!({"hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32, "intermediate_size": 8192, "use_gated_mlp": true, "hidden_act": "silu"}),
            Shape { dim: 4096, depth: 40, heads: 32, rows: 16384, gate: silu, ..rotary },
        ),
    ] {
        let config = understood(&with(&dinov3(), &changes), Names::HuggingFaceV3, shape).unwrap();
        assert_eq!(config.rope_base().unwrap(), Some(100.0));
    }
    // As transformers 5 writes the base of most networks.
    let parameters = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}});
    let config = understood(&with(&dinov3(), &parameters), Names::HuggingFaceV3, rotary).unwrap();
    assert_eq!(config.rope_base().unwrap(), Some(10000.0));
}

#[test]
fn public_repositories_of_timm_are_understood() {
    let small = Shape { patch: 14, side: 37, ..SMALL };
    let large = Shape { dim: 1024, depth: 24, heads: 16, rows: 4096, ..SMALL };
    let huge = Shape { dim: 1280, depth: 32, heads: 16, patch: 14, side: 16, rows: 5120, ..SMALL };
    let silu = Some(Activation::Silu);
    for (architecture, arguments, shape) in [
        ("vit_small_patch16_224", json!({}), SMALL),
        ("vit_small_patch16_224.dino", Json::Null, SMALL),
        ("vit_small_patch14_dinov2", json!({"img_size": 518}), small),
        ("vit_small_patch14_reg4_dinov2", Json::Null, Shape { registers: 4, ..small }),
        ("vit_giant_patch14_dinov2", Json::Null, GIANT),
        ("vit_small_patch16_dinov3", Json::Null, Shape { side: 0, registers: 4, ..SMALL }),
        (
            "vit_7b_patch16_dinov3",
            Json::Null,
            Shape { dim: 4096, depth: 40, heads: 32, rows: 16384, gate: silu, side: 0, registers: 4, ..SMALL },
        ),
        // UNI.
        ("vit_large_patch16_224", json!({"img_size": 224, "init_values": 1e-05, "num_classes": 0, "dynamic_img_size": true}), large),
        // UNI2-h.
        (
            "vit_giant_patch14_224",
            json!({"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-05, "embed_dim": 1536,
                "mlp_ratio": 5.33334, "num_classes": 0, "no_embed_class": true, "reg_tokens": 8, "dynamic_img_size": true,
                "mlp_layer": "timm.layers.SwiGLUPacked", "act_layer": "torch.nn.SiLU"}),
            Shape { depth: 24, side: 16, registers: 8, ..GIANT },
        ),
        // H-optimus-0 and -1.
        (
            "vit_giant_patch14_reg4_dinov2",
            json!({"img_size": 224, "init_values": 1e-05, "dynamic_img_size": false}),
            Shape { side: 16, registers: 4, ..GIANT },
        ),
        // Virchow2.
        (
            "vit_huge_patch14_224",
            json!({"img_size": 224, "init_values": 1e-05, "num_classes": 0, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": "",
                "dynamic_img_size": true}),
            Shape { registers: 4, rows: 6832, gate: silu, ..huge },
        ),
        // Prov-GigaPath.
        (
            "vit_giant_patch14_dinov2",
            json!({"img_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
                "init_values": 1e-05, "mlp_ratio": 5.33334, "num_classes": 0}),
            Shape { patch: 16, side: 14, ..GIANT },
        ),
        ("vit_huge_patch14_224", Json::Null, huge),
        ("vit_giant_patch14_224", Json::Null, Shape { dim: 1408, depth: 40, rows: 6144, ..huge }),
        ("vit_gigantic_patch14_224", Json::Null, Shape { dim: 1664, depth: 48, rows: 8192, ..huge }),
    ] {
        let json = timm(architecture, shape.dim, arguments);
        let config = understood(&json, Names::Fused, shape).unwrap();
        assert_eq!(config.heads(shape.dim).unwrap(), Some(shape.heads), "{architecture}");
        // As transformers' wrapper of timm writes it.
        let wrapped = json!({"model_type": "timm_wrapper", "architectures": ["TimmWrapperModel"], "initializer_range": 0.02, "torch_dtype": "float32"});
        understood(&with(&json, &wrapped), Names::Fused, shape).unwrap();
    }
    let resnet = Backbone::Resnet(Resnet { stem: Conv { kernel: Linear::default(), stride: 2, groups: 1 }, stages: Vec::new(), dim: 2048 });
    read(&timm("resnet50", 2048, Json::Null), Names::Resnet).unwrap().check(&resnet).unwrap();
    refused(read(&timm("resnetblur50", 2048, Json::Null), Names::Resnet), "resnetblur50");
    read(&timm("convnext_tiny.dinov3_lvd1689m", 768, json!({"ls_init_value": 1e-6})), Names::Convnext).unwrap();
    refused(read(&timm("convnext_zepto_rms", 256, Json::Null), Names::Convnext), "convnext_zepto_rms");
}

#[test]
fn what_another_network_of_transformers_has_is_refused_by_name() {
    let vit = Shape { patch: 14, side: 37, ..SMALL };
    for (setting, value) in [
        ("layer_norm_eps", json!("1e-6")),
        ("layer_norm_eps", json!(-1.0)),
        ("num_attention_heads", json!("6")),
        ("num_attention_heads", json!(5)),
        ("num_attention_heads", json!(0)),
        ("hidden_act", json!({"name": "gelu"})),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("hidden_act", json!("silu")),
        ("hidden_size", json!(768)),
        ("num_hidden_layers", json!(11)),
        ("num_hidden_layers", json!("12")),
        ("num_register_tokens", json!(4)),
        ("qkv_bias", json!(false)),
        ("qkv_bias", json!("yes")),
        ("patch_size", json!(16)),
        ("image_size", json!(224)),
        ("num_channels", json!(1)),
        ("mlp_ratio", json!(3)),
        ("use_swiglu_ffn", json!(true)),
        ("quantization_config", json!({"load_in_8bit": true})),
        ("model_type", json!("ijepa")),
        ("model_type", json!(["dinov2"])),
    ] {
        refused(understood(&with(&dinov2(), &json!({setting: value})), Names::HuggingFace, vit), setting);
    }
    let rotary = Shape { side: 0, registers: 4, ..SMALL };
    for (setting, value) in [
        ("rope_theta", json!("10000")),
        ("rope_theta", json!(0)),
        ("rope_theta", json!(-5)),
        ("rope_parameters", json!({"rope_theta": 10000.0, "rope_type": "default"})),
        ("rope_parameters", json!({"rope_theta": 100.0, "rope_type": "yarn"})),
        ("rope_scaling", json!({"factor": 2.0})),
        ("use_gated_mlp", json!(true)),
        ("num_register_tokens", json!(0)),
        ("intermediate_size", json!(3072)),
        ("hidden_act", json!("relu")),
    ] {
        refused(understood(&with(&dinov3(), &json!({setting: value})), Names::HuggingFaceV3, rotary), setting);
    }
    let lone = json!({"architectures": ["IJepaModel"]});
    for names in [Names::HuggingFace, Names::Fused, Names::Resnet, Names::Convnext] {
        refused(read(&lone, names), "IJepaModel");
    }
    refused(read(&with(&dino(), &json!({"architecture": "vit_small_patch16_224", "model_type": "ijepa"})), Names::Fused), "ijepa");
    refused(read(&json!([]), Names::Fused), "config.json");
    // Of a repository of another kind, beside Meta's names.
    refused(understood(&with(&dino(), &json!({"hidden_act": "relu"})), Names::Fused, SMALL), "hidden_act");
    assert_eq!(understood(&with(&dino(), &json!({"layer_norm_eps": 0.1})), Names::Fused, SMALL).unwrap().eps().unwrap(), Some(0.1));
    // What the class does not know changes nothing.
    understood(&with(&dinov2(), &json!({"query_scale": 2.0, "mean_pooling": true, "id2label": {"0": "a"}})), Names::HuggingFace, vit)
        .unwrap();
}

#[test]
fn what_another_network_of_timm_has_is_refused_by_name() {
    let outcome = |arguments: Json| understood(&timm("vit_small_patch16_224", 384, arguments), Names::Fused, SMALL);
    for (argument, value) in [
        ("act_layer", json!("quick_gelu")),
        ("act_layer", json!("torch.nn.SiLU")),
        ("act_layer", json!(["gelu"])),
        ("norm_layer", json!("rmsnorm")),
        ("block_fn", json!("ParallelScalingBlock")),
        ("mlp_layer", json!("SwiGLUPacked")),
        ("mlp_layer", json!("timm.layers.GluMlp")),
        ("qk_norm", json!(true)),
        ("pre_norm", json!(true)),
        ("scale_mlp_norm", json!(true)),
        ("final_norm", json!(false)),
        ("pos_embed", json!("none")),
        ("something_new", json!(3)),
        ("num_heads", json!(5)),
        ("num_heads", json!("6")),
        ("embed_dim", json!(768)),
        ("depth", json!(11)),
        ("patch_size", json!(8)),
        ("in_chans", json!(1)),
        ("reg_tokens", json!(4)),
        ("mlp_ratio", json!(3.0)),
        ("qkv_bias", json!(false)),
        ("class_token", json!(false)),
    ] {
        refused(outcome(json!({argument: value.clone()})), argument);
        // They count beside model_args too, where timm itself does not look.
        if argument != "something_new" {
            let beside = with(&timm("vit_small_patch16_224", 384, Json::Null), &json!({argument: value}));
            refused(understood(&beside, Names::Fused, SMALL), argument);
        }
    }
    refused(read(&timm("vit_small_patch16_224", 384, json!([{"act_layer": "relu"}])), Names::Fused), "model_args");
    refused(read(&json!({"architecture": ["vit_small_patch16_224"]}), Names::Fused), "architecture");
    refused(read(&timm("vit_base_patch16_clip_quickgelu_224", 768, Json::Null), Names::Fused), "quickgelu");
    refused(understood(&timm("vit_base_patch16_224", 384, Json::Null), Names::Fused, SMALL), "--heads");
    let harmless = json!({"img_size": 518, "num_classes": 0, "in_chans": 3, "drop_path_rate": 0.1, "proj_drop_rate": 0.0, "qk_norm": false,
        "pos_embed": "learn", "act_layer": "gelu", "num_heads": 6, "patch_size": [16, 16], "class_token": true, "pre_norm": null});
    outcome(harmless).unwrap();
    let heads = read(&timm("vit_small_patch16_224", 384, json!({"num_heads": 12})), Names::Fused).unwrap().heads(384).unwrap();
    assert_eq!(heads, Some(12));
}

#[test]
fn checkpoints_of_timms_training_say_their_network() {
    let of = |arch: &str, names| {
        let mut store = Store::default();
        store.scalars.insert("arch".to_owned(), json!(arch));
        Config::read(None, &store, names)
    };
    assert_eq!(of("vit_huge_patch14_224", Names::Fused).unwrap().heads(1280).unwrap(), Some(16));
    refused(of("vit_base_patch16_clip_quickgelu_224", Names::Fused), "quickgelu");
    refused(of("resnetblur50", Names::Resnet), "resnetblur50");
    // DINO's and MoCo's own word, which is no name of timm's.
    assert!(!of("vit_small", Names::Fused).unwrap().is_timms());
}
