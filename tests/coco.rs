//! Masks as COCO's tools read them, against what pycocotools makes of the same masks (`tests/data/coco/make.py`).

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use dino_vision::{segment::Mask, transform::PatchGrid};
use serde::Deserialize;

#[derive(Deserialize)]
struct Made {
    masks: Vec<Expected>,
}

/// A mask on its patches, and what pycocotools says of it at the size of the picture.
#[derive(Deserialize)]
struct Expected {
    name: String,
    width: u32,
    height: u32,
    cells: Vec<String>,
    counts: String,
    area: u64,
    bbox: [u32; 4],
    polygons: Option<Vec<Vec<u32>>>,
}

fn each(mut check: impl FnMut(&Expected, &Mask)) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/coco/masks.json");
    let Made { masks } = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    assert!(masks.len() > 30);
    for expected in &masks {
        let grid = PatchGrid { rows: expected.cells.len(), columns: expected.cells[0].len() };
        let cells = expected.cells.concat().bytes().map(|cell| cell == b'#').collect();
        check(expected, &Mask::new(cells, grid, (expected.width, expected.height)));
    }
}

#[test]
fn run_lengths_boxes_and_areas_are_those_of_pycocotools() {
    each(|expected, mask| {
        let (name, rle) = (&expected.name, mask.rle());
        assert_eq!((rle.size, rle.counts.as_str()), ([expected.height, expected.width], expected.counts.as_str()), "{name}");
        assert_eq!((mask.area(), mask.bbox()), (expected.area, expected.bbox), "{name}");
    });
}

/// The file holds polygons from which pycocotools draws exactly the mask.
#[test]
fn polygons_are_those_that_pycocotools_draws_as_the_mask() {
    let (mut ours, mut drawn) = (Vec::new(), Vec::new());
    each(|expected, mask| {
        ours.push(Some(mask.polygons()));
        drawn.push(expected.polygons.clone());
    });
    assert!(
        ours == drawn,
        "give these to tests/data/coco/make.py, which has pycocotools draw them:\n{}",
        serde_json::to_string(&ours).unwrap()
    );
}
