//! What a graph gives beside its usual outputs, when it is asked to.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod common;

use std::path::Path;

use common::{Tensors, array, assert_close, bundled_golden, heads, picture, run, session, tensors, write};
use dino_train::export::{Error, Exported, LastBlocks, Options, export};
use dino_vision::model::RawSession;
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
