//! Learning rates by layer against DINOv2's own code (`reference/layer_decay.py`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use candle_core::Device;
use dino_train::backbone::vit::VitConfig;
use dino_train::dino::layer_decay::LayerDecay;
use dino_train::dino::network::Network;
use serde_json::Value;

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("reference/layer_decay.json")).unwrap()
}

fn layer_decay(case: &Value) -> LayerDecay {
    let number = |name: &str| case[name].as_f64().unwrap();
    LayerDecay { rate: number("rate"), depth: number("depth") as usize, patch_embed: number("patch_embed"), backbone: 1.0 }
}

/// The first factor that is another.
fn check(case: &Value, layer_decay: LayerDecay) -> Result<(), String> {
    for (name, want) in case["factors"].as_object().unwrap() {
        let (got, want) = (layer_decay.multiplier(name), want.as_f64().unwrap());
        if (got - want).abs() > 1e-12 * want {
            return Err(format!("{name}: {got}, not {want}"));
        }
    }
    Ok(())
}

#[test]
fn golden_layer_decay_of_every_parameter() {
    for case in cases() {
        let layer_decay = layer_decay(&case);
        check(&case, layer_decay).unwrap();
        // Parameters of a network have names that the file knows, and a group is of one layer.
        let config = VitConfig {
            img_size: 16,
            patch_size: 8,
            dim: 8,
            heads: 2,
            depth: layer_decay.depth,
            registers: 1,
            layer_scale: Some(1.0),
            mask_token: true,
            ..VitConfig::default()
        };
        let head = golden::head(|_| 8);
        let network = Network::new(config, head, &mut golden::random(), &Device::Cpu).unwrap();
        for group in network.backbone.groups() {
            let factors: Vec<f64> = group.entries().iter().map(|entry| case["factors"][&entry.name].as_f64().unwrap()).collect();
            assert!(factors.iter().all(|factor| factor.to_bits() == factors[0].to_bits()), "{:?}", group.entries());
        }
    }
}

#[test]
fn golden_layer_decay_comparison_can_fail() {
    let case = &cases()[0];
    let right = layer_decay(case);
    for wrong in [
        LayerDecay { rate: 0.9001, ..right },
        LayerDecay { depth: 11, ..right },
        LayerDecay { patch_embed: 0.21, ..right },
        LayerDecay { backbone: 0.999, ..right },
    ] {
        assert!(check(case, wrong).is_err(), "{wrong:?}");
    }
}
