//! Attention masks against those that the public DINO code makes.

use std::path::PathBuf;

use dino_vision::segment::head_cells;
use safetensors::SafeTensors;

#[test]
fn golden_attention_mask_keeps_the_same_patches() {
    let folder =
        std::env::var_os("DINO_GOLDEN").map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")), PathBuf::from);
    let file = fs_err::read(folder.join("attention_mask.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let attention = tensors.tensor("attention").unwrap();
    let expected = tensors.tensor("mask_60").unwrap();
    let [heads, patches] = *attention.shape() else { panic!("attention is [heads, patches]") };
    assert!(heads > 0 && patches > 0);
    assert_eq!(expected.shape(), [heads, patches]);

    let numbers = attention.data().as_chunks::<4>().0;
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    for (head, (weights, expected)) in numbers.chunks_exact(patches).zip(expected.data().chunks_exact(patches)).enumerate() {
        let kept: Vec<u8> = head_cells(weights, 0.6).into_iter().map(u8::from).collect();
        assert_eq!(kept, expected, "head {head}");
        assert_ne!(head_cells(weights, 0.5), head_cells(weights, 0.6), "the threshold has to matter");
    }
}
