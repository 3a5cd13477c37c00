//! One graph for every batch and size, against the reference implementations (see `reference/make.py`).

mod common;

use std::path::Path;

use common::{array, assert_close, bundled_golden, heads, picture, read, run, session};
use dino_train::export::export;
use dino_train::weights::Tensor;
use ndarray::{Axis, concatenate};

#[test]
fn any_grid_and_batch_agrees_with_the_reference() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/sizes.safetensors");
    let expected = read(&reference);
    let work = tempfile::tempdir().unwrap();
    for name in ["pth-dino-backbone", "hf-dino-vit", "hf-dinov2", "hf-dinov2-registers", "hf-dinov3-vit"] {
        let checkpoint = bundled_golden().join("checkpoints").join(name);
        let exported = export(&checkpoint, &work.path().join(name), &heads(4)).unwrap();
        let patch = exported.manifest.patch_size as usize;
        let mut session = session(&exported.folder);
        for (rows, columns) in [(3, 5), (5, 3), (8, 8), (1, 9)] {
            let input = picture(rows * patch, columns * patch);
            let single = run(&mut session, &input);
            for (output, found) in &single {
                let key = format!("{name}.{rows}x{columns}.{output}");
                assert_close(found, &array(&expected[&key]), &key);
            }
            // Three different pictures; the middle one is that of the reference.
            let middle = array(&input);
            let batch = concatenate![Axis(0), middle.mapv(|value| -value), middle, middle.mapv(|value| value * 0.5)];
            let batch = Tensor { shape: batch.shape().to_vec(), data: batch.iter().copied().collect() };
            for (output, found) in run(&mut session, &batch) {
                assert_close(&found.select(Axis(0), &[1]), &single[output], &format!("{name} in a batch: {output}"));
                assert_ne!(found.select(Axis(0), &[0]), single[output]);
            }
        }
    }
}
