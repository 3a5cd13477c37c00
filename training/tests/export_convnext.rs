//! DINOv3's `ConvNeXt`, against what transformers answers with the same weights (`tests/data/convnext/make.py`).

mod common;

use std::path::Path;

use common::convnext::{expected, folder, meta, releases, renamed, timm};
use common::{Tensors, array, assert_close, run, session, session_of, write};
use dino_train::export::{Error, Exported, Options, export};
use dino_vision::model::Precision;

fn assert_expected(exported: &Exported) {
    let expected = expected();
    let mut session = session(&exported.folder);
    for case in ["whole", "tall"] {
        let outputs = run(&mut session, &expected[&format!("{case}.input")]);
        for output in ["embedding", "feature_map"] {
            let what = format!("{} {case}.{output}", exported.manifest.source.layout);
            assert_close(&outputs[output], &array(&expected[&format!("{case}.{output}")]), &what);
        }
    }
}

fn export_tensors(work: &Path, tensors: &Tensors) -> Result<Exported, Error> {
    let file = work.join("weights.safetensors");
    write(&file, tensors, &[]);
    export(&file, &work.join("model"), &Options::default())
}

#[test]
fn every_release_gives_what_transformers_gives() {
    let work = tempfile::tempdir().unwrap();
    let exported = export(&folder(), &work.path().join("model"), &Options::default()).unwrap();
    assert_expected(&exported);
    let manifest = &exported.manifest;
    assert_eq!((manifest.architecture.as_str(), manifest.patch_size, manifest.depth, manifest.dim), ("dinov3-convnext", 32, 5, 24));
    for (layout, tensors) in releases() {
        let exported = export_tensors(work.path(), &tensors).unwrap();
        assert_eq!((exported.manifest.source.layout.as_str(), exported.report.used), (layout, tensors.len()));
        assert_expected(&exported);
    }
    // Meta's module names its final norm twice.
    let mut twice = renamed(meta);
    for part in ["weight", "bias"] {
        twice.insert(format!("norms.3.{part}"), twice[&format!("norm.{part}")].clone());
    }
    assert_expected(&export_tensors(work.path(), &twice).unwrap());
}

#[test]
fn what_another_convnext_computes_is_refused_by_name() {
    let work = tempfile::tempdir().unwrap();
    let mut second = renamed(timm);
    second.insert("stages.0.blocks.0.mlp.grn.weight".to_owned(), second["stages.0.blocks.0.norm.weight"].clone());
    let error = export_tensors(work.path(), &second).unwrap_err().to_string();
    assert!(error.contains("not used: stages.0.blocks.0.mlp.grn.weight"), "{error}");
    let mut cut = renamed(meta);
    cut.remove("stages.2.1.pwconv1.weight");
    let error = export_tensors(work.path(), &cut).unwrap_err().to_string();
    assert!(error.contains("missing: stages.2.1.pwconv1.weight"), "{error}");
    let options = Options { precisions: vec![Precision::Int8], ..Options::default() };
    let error = export(&folder(), &work.path().join("model"), &options).unwrap_err().to_string();
    assert!(error.contains("f32 or f16"), "{error}");
}

#[test]
fn f16_stays_close() {
    let work = tempfile::tempdir().unwrap();
    let options = Options { precisions: vec![Precision::F32, Precision::F16], ..Options::default() };
    let exported = export(&folder(), &work.path().join("model"), &options).unwrap();
    let expected = expected();
    let outputs = run(&mut session_of(&exported.folder, Precision::F16), &expected["whole.input"]);
    let (found, expected) = (&outputs["embedding"], array(&expected["whole.embedding"]));
    let largest = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    assert!(largest < 0.02, "{largest}");
}
