//! Masks and boxes against those of the public code of FOUND, TokenCut and LOST.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::path::PathBuf;

use dino_vision::segment::{background, lost, ncut};
use dino_vision::transform::PatchGrid;
use ndarray::{ArrayView2, aview1};
use safetensors::SafeTensors;
use serde_json::Value;

struct Golden {
    file: Vec<u8>,
    config: Value,
}

fn golden() -> Golden {
    let folder =
        std::env::var_os("DINO_GOLDEN").map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")), PathBuf::from);
    let file = fs_err::read(folder.join("segment.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
    let config = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
    Golden { file, config }
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn integers(tensors: &SafeTensors<'_>, name: &str) -> Vec<usize> {
    let numbers = tensors.tensor(name).unwrap().data().as_chunks::<8>().0.to_vec();
    numbers.into_iter().map(|bytes| usize::try_from(i64::from_le_bytes(bytes)).unwrap()).collect()
}

fn flags(tensors: &SafeTensors<'_>, name: &str) -> Vec<bool> {
    tensors.tensor(name).unwrap().data().iter().map(|flag| *flag == 1).collect()
}

/// Runs `check` with each scene's name, tensors, attention, keys and grid.
fn each_scene(golden: &Golden, check: impl Fn(&str, &SafeTensors<'_>, ArrayView2<'_, f32>, ArrayView2<'_, f32>, PatchGrid)) {
    let tensors = SafeTensors::deserialize(&golden.file).unwrap();
    let mut scenes: Vec<&str> = tensors.names().into_iter().filter_map(|name| name.strip_suffix(".grid")).collect();
    scenes.sort_unstable();
    assert!(!scenes.is_empty(), "the file holds no scene");
    for scene in scenes {
        let [rows, columns] = integers(&tensors, &format!("{scene}.grid"))[..] else { panic!("a grid is [rows, columns]") };
        let grid = PatchGrid { rows, columns };
        let (attention, keys) = (floats(&tensors, &format!("{scene}.attention")), floats(&tensors, &format!("{scene}.keys")));
        let matrix = |values, rows| aview1(values).into_shape_with_order((rows, values.len() / rows)).unwrap();
        let heads = usize::try_from(golden.config["heads"].as_u64().unwrap()).unwrap();
        check(scene, &tensors, matrix(&attention, heads), matrix(&keys, grid.len()), grid);
    }
}

fn number(golden: &Golden, name: &str) -> f32 {
    golden.config[name].as_f64().unwrap() as f32
}

#[test]
fn golden_segment_background() {
    let golden = golden();
    each_scene(&golden, |scene, tensors, attention, keys, _| {
        let found = background(attention, keys, number(&golden, "background_threshold")).unwrap();
        assert_eq!(found.cells, flags(tensors, &format!("{scene}.background_mask")), "{scene}");
    });
}

#[test]
fn golden_segment_ncut() {
    let golden = golden();
    each_scene(&golden, |scene, tensors, _, keys, grid| {
        let cut = &ncut(keys, grid, number(&golden, "tau"), 1)[0];
        assert_eq!(cut.partition, flags(tensors, &format!("{scene}.ncut_partition")), "{scene}");
        assert_eq!(cut.object, flags(tensors, &format!("{scene}.ncut_mask")), "{scene}");
        // Patches of one object may share the largest value: which of them leads is rounding.
        let seed = integers(tensors, &format!("{scene}.ncut_seed"))[0];
        assert!((cut.eigenvector[seed].abs() - 1.0).abs() < 1e-4, "{scene}: {}", cut.eigenvector[seed]);
    });
}

#[test]
fn golden_segment_lost() {
    let golden = golden();
    each_scene(&golden, |scene, tensors, _, keys, grid| {
        let candidates = golden.config["lost_k"].as_u64().unwrap().try_into().unwrap();
        let found = &lost(keys, grid, candidates, 0.0, 1)[0];
        let cells = || (0..grid.len()).filter(|cell| found.object[*cell]).map(|cell| (cell % grid.columns, cell / grid.columns));
        let (left, top) = (cells().map(|(x, _)| x).min().unwrap(), cells().map(|(_, y)| y).min().unwrap());
        let (right, bottom) = (cells().map(|(x, _)| x).max().unwrap() + 1, cells().map(|(_, y)| y).max().unwrap() + 1);
        assert_eq!([left, top, right, bottom][..], integers(tensors, &format!("{scene}.lost_box")), "{scene}");
        let seed = integers(tensors, &format!("{scene}.lost_seed"))[0];
        assert!(found.object[seed], "{scene}: the public code's seed lies in the object");
    });
}
