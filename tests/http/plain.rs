//! ONNX files that others exported: `--model file.onnx`.

use std::path::{Path, PathBuf};
use std::process::Output;

use dino_vision::model::{Model, ModelError, SessionOptions};
use dino_vision::transform::{Interpolation, Resize, Transform};
use image::RgbImage;
use onnx_rs::ast::{Attribute, AttributeType, DataType, Node, OpType, TensorProto};
use serde_json::{Value, json};

use crate::graphs::{Answers, DIM, Sketch, cls_of};
use crate::harness::{Server, program, root};
use crate::pictures::{png, scene};

fn serve(file: &Path, flags: &[&str]) -> Server {
    Server::with_models(&[file.to_str().unwrap()], flags)
}

/// What `--model` of a file that is no model ends with.
fn refusal(file: &Path) -> String {
    let output = program().args(["serve", "--listen", "127.0.0.1:0", "--model"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[track_caller]
fn assert_same(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} {expected}");
    }
}

/// The vector of a server that does not normalise it.
fn embedded(server: &Server, picture: &RgbImage) -> Vec<f32> {
    server.embed_with("?normalize=false", &png(picture))
}

fn info(server: &Server) -> Value {
    server.get("/v1/models").ok().json()["data"][0].clone()
}

/// A Hugging Face configuration: the shorter side 40, then 32 x 32.
fn small_preprocessor() -> Value {
    json!({
        "image_processor_type": "BitImageProcessor", "do_resize": true, "size": {"shortest_edge": 40}, "do_center_crop": true,
        "crop_size": {"height": 32, "width": 32}, "resample": 2, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3],
    })
}

fn small_transform() -> Transform {
    Transform {
        resize: Resize::Shorter(40),
        crop: Some((32, 32)),
        interpolation: Interpolation::Bilinear,
        mean: [0.5, 0.4, 0.3],
        std: [0.2, 0.25, 0.3],
    }
}

/// A file in a folder of its own.
fn written(folder: &Path, sketch: &Sketch, preprocessor: Option<&Value>) -> PathBuf {
    let file = folder.join("model.onnx");
    sketch.write(&file);
    if let Some(preprocessor) = preprocessor {
        fs_err::write(folder.join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
    }
    file
}

#[test]
fn a_file_of_transformers_answers_as_its_preprocessor_says_and_names_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &Sketch { registers: 4, ..Sketch::default() }, Some(&small_preprocessor()));
    let server = serve(&file, &[]);
    let log = server.log_with("plain ONNX");
    for words in
        ["pixel_values", "patches of 16 pixels, 4 registers", "not used: pooler_output", "all multiples of 16", "preprocessor_config.json"]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
    let picture = scene(90, 60, 3);
    assert_same(&embedded(&server, &picture), &cls_of(&picture, &small_transform()), 1e-4);
    let model = info(&server);
    assert_eq!((&model["patch_size"], &model["registers"], &model["dim"]), (&json!(16), &json!(4), &json!(DIM)), "{model}");

    let patches = server.post("/embed?pooling=patches", "image/png", &png(&picture)).ok().json();
    assert_eq!(patches["grid"], json!([[2, 2]]), "registers are no patches: {patches}");
    let detail = server.post("/segment", "image/png", &png(&picture)).problem(422, "model_lacks_output")["detail"].to_string();
    assert!(detail.contains("attention") && detail.contains("last_hidden_state"), "{detail}");
    server.post("/segment?method=background", "image/png", &png(&picture)).problem(422, "model_lacks_output");
    // Tokens are enough for these, at every size.
    let masks = server.post("/segment?method=ncut", "image/png", &png(&picture)).ok().json();
    assert_eq!((&masks["results"][0]["width"], &masks["results"][0]["height"]), (&json!(90), &json!(60)));
    server.post_json("/similarity", &json!({"images": [base64(&picture)], "points": [[3, 4]]})).ok();
}

#[test]
fn timms_configuration_one_folder_up_says_how_pictures_are_prepared() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::create_dir(folder.path().join("onnx")).unwrap();
    let file = written(&folder.path().join("onnx"), &Sketch::default(), None);
    let Transform { mean, std, .. } = small_transform();
    let timm = json!({"architecture": "vit_small_patch16_224", "pretrained_cfg": {
        "input_size": [3, 32, 32], "crop_pct": 0.8, "interpolation": "bilinear", "mean": mean, "std": std}});
    fs_err::write(folder.path().join("config.json"), timm.to_string()).unwrap();
    let server = serve(&file, &[]);
    let log = server.log_with("plain ONNX");
    assert!(log.contains("config.json") && !log.contains("DINO's own"), "{log}");
    let picture = scene(90, 60, 3);
    assert_same(&embedded(&server, &picture), &cls_of(&picture, &small_transform()), 1e-4);
    // What timm would refuse, too.
    fs_err::write(folder.path().join("config.json"), r#"{"pretrained_cfg": {"input_size": [3, 32, 32], "crop_mode": "border"}}"#).unwrap();
    assert!(reason(&file).contains("crop_mode is \"border\""), "{}", reason(&file));
}

fn base64(picture: &RgbImage) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(png(picture))
}

#[test]
fn one_vector_of_another_name_and_one_size_is_enough_to_embed_and_classify() {
    let folder = tempfile::tempdir().unwrap();
    let sketch = Sketch { input: "input", answers: Answers::Vector, batch: Some(1), size: Some([48, 48]), ..Sketch::default() };
    let file = written(folder.path(), &sketch, None);
    let server = serve(&file, &["--data-dir", folder.path().join("data").to_str().unwrap()]);
    let log = server.log_with("plain ONNX");
    for words in ["input input", "1234 as embedding", "48x48 pixels alone", "1 at a time", "DINO's own, changed from 224x224 to the 48x48"]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
    // 256 x 48 / 224
    let transform = Transform { resize: Resize::Shorter(55), crop: Some((48, 48)), ..Transform::evaluation() };
    let pictures: Vec<_> = (0..5).map(|seed| scene(100 + 7 * seed, 80, seed)).collect();
    // Several pictures of one request, one run for each.
    let answer = server.post_parts("/embed?normalize=false", &pictures.iter().map(png).collect::<Vec<_>>());
    for (picture, vector) in pictures.iter().zip(answer.ok().vectors()) {
        assert_same(&vector, &cls_of(picture, &transform), 1e-4);
    }
    for what in ["/embed?pooling=mean", "/embed?pooling=patches", "/segment", "/segment?method=pca"] {
        server.post(what, "image/png", &png(&pictures[0])).problem(422, "model_lacks_output");
    }
    server.put("/collections/default", &json!({}));
    let item = server.post("/collections/default/items?id=a&labels=first", "image/png", &png(&pictures[0]));
    item.ok();
    let found = server.post("/classify", "image/png", &png(&pictures[0])).ok().json();
    assert_eq!(found["results"][0]["label"], "first", "{found}");
}

#[test]
fn sizes_and_batches_that_are_free_in_name_alone_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let sketch = Sketch { positions: Some([2, 2]), registers: 1, ..Sketch::default() };
    let file = written(folder.path(), &sketch, Some(&small_preprocessor()));
    let server = serve(&file, &[]);
    let log = server.log_with("plain ONNX");
    assert!(log.contains("32x32 pixels alone, any number of pictures"), "{log}");
    let picture = scene(64, 40, 1);
    assert_same(&embedded(&server, &picture), &cls_of(&picture, &small_transform()), 1e-4);
    // Masks come from the one size there is, and cover the picture all the same.
    let masks = server.post("/segment?method=pca&format=rle", "image/png", &png(&picture)).ok().json();
    assert_eq!(masks["results"][0]["masks"][0]["rle"]["size"], json!([40, 64]), "{masks}");
}

#[test]
fn sixteen_bits_go_in_and_out_and_the_configuration_may_lie_one_folder_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onnx/model_fp16.onnx");
    Sketch { half: true, ..Sketch::default() }.write(&file);
    fs_err::write(folder.path().join("preprocessor_config.json"), small_preprocessor().to_string()).unwrap();
    // What a folder of several precisions would choose from does not concern a file.
    let server = serve(&file, &["--precision", "int8"]);
    let log = server.log_with("plain ONNX");
    assert!(log.contains("of float16"), "{log}");
    let model = info(&server);
    assert_eq!((&model["id"], &model["precision"]), (&json!("model_fp16"), &json!("f16")), "{model}");
    let picture = scene(50, 70, 2);
    assert_same(&embedded(&server, &picture), &cls_of(&picture, &small_transform()), 0.02);
}

#[test]
fn a_batch_of_several_is_filled_up() {
    let folder = tempfile::tempdir().unwrap();
    let sketch = Sketch { batch: Some(3), ..Sketch::default() };
    let file = written(folder.path(), &sketch, Some(&small_preprocessor()));
    let server = serve(&file, &[]);
    assert!(server.log_with("plain ONNX").contains("3 at a time"));
    let pictures: Vec<_> = (0..4).map(|seed| scene(64, 48, seed)).collect();
    let answer = server.post_parts("/embed?normalize=false", &pictures.iter().map(png).collect::<Vec<_>>());
    for (picture, vector) in pictures.iter().zip(answer.ok().vectors()) {
        assert_same(&vector, &cls_of(picture, &small_transform()), 1e-4);
    }
}

#[test]
fn a_feature_map_serves_what_a_residual_network_serves() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &Sketch { answers: Answers::Map, ..Sketch::default() }, Some(&small_preprocessor()));
    let server = serve(&file, &[]);
    assert!(server.log_with("plain ONNX").contains("one cell for 16 pixels"));
    let picture = scene(64, 40, 1);
    assert_same(&embedded(&server, &picture), &cls_of(&picture, &small_transform()), 1e-4);
    server.post("/segment?method=ncut", "image/png", &png(&picture)).ok();
    server.post("/segment", "image/png", &png(&picture)).problem(422, "model_lacks_output");
}

#[test]
fn weights_beside_the_file_are_read_and_are_part_of_what_a_collection_depends_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &Sketch { external: true, ..Sketch::default() }, Some(&small_preprocessor()));
    let weights = folder.path().join("model.onnx_data");
    let picture = scene(64, 48, 5);
    let hash = {
        let server = serve(&file, &[]);
        assert_same(&embedded(&server, &picture), &cls_of(&picture, &small_transform()), 1e-4);
        info(&server)["source_sha256"].clone()
    };
    let mut bytes = fs_err::read(&weights).unwrap();
    bytes[7] ^= 0x10;
    fs_err::write(&weights, bytes).unwrap();
    assert_ne!(info(&serve(&file, &[]))["source_sha256"], hash);
    fs_err::remove_file(&weights).unwrap();
    let said = refusal(&file);
    assert!(said.contains("model.onnx_data is not there") && said.contains("copy it"), "{said}");
}

#[test]
fn a_collection_belongs_to_the_file_and_is_imported_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &Sketch::default(), Some(&small_preprocessor()));
    let other = folder.path().join("other.onnx");
    Sketch { registers: 2, ..Sketch::default() }.write(&other);
    let data = folder.path().join("data");
    let import = |model: &Path| -> Output {
        let mut command = program();
        command.args(["import", "--images"]).arg(root().join("tests/data/caltech101-val")).arg("--data-dir").arg(&data);
        command.arg("--model").arg(model).output().unwrap()
    };
    let done = import(&file);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("plain ONNX"), "{said}");
    let refused = import(&other);
    assert_eq!(refused.status.code(), Some(1), "another file is another model");

    let server = serve(&file, &["--data-dir", data.to_str().unwrap()]);
    let picture = fs_err::read(root().join("tests/data/caltech101-val/sunflower/image_0003.jpg")).unwrap();
    let found = server.post("/classify?k=1", "image/jpeg", &picture).ok().json();
    assert_eq!(found["results"][0]["label"], "sunflower", "{found}");
}

#[test]
fn files_that_are_no_vision_backbone_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("exported");
    let file = written(&folder, &Sketch::default(), None);
    let good = fs_err::read(&file).unwrap();
    for keep in [0, 3, good.len() / 2, good.len() - 1] {
        fs_err::write(&file, &good[..keep]).unwrap();
        let said = refusal(&file);
        assert!(said.contains("model.onnx") && (said.contains("truncated") || said.contains("is no model")), "{keep}: {said}");
    }
    fs_err::write(&file, fs_err::read(root().join("README.md")).unwrap()).unwrap();
    assert!(refusal(&file).contains("is no model for this server"));

    fs_err::write(&file, &good).unwrap();
    fs_err::write(folder.join("preprocessor_config.json"), r#"{"size": 224, "resample": 0}"#).unwrap();
    let said = refusal(&file);
    assert!(said.contains("preprocessor_config.json") && said.contains("resample is 0"), "{said}");
    fs_err::write(folder.join("preprocessor_config.json"), "{").unwrap();
    assert!(refusal(&file).contains("preprocessor_config.json"));

    // A folder of another program, named instead of its file.
    let said = refusal(&folder);
    assert!(said.contains("manifest.json") && said.contains("--model FILE.onnx"), "{said}");
}

/// Why a file does not open. In this process, where a panic or an overflow would end the test.
fn reason(file: &Path) -> String {
    Model::open(file).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn sizes_that_no_machine_has_memory_for_are_refused_before_a_trial() {
    let folder = tempfile::tempdir().unwrap();
    let sketches = [
        Sketch { size: Some([1_000_000, 1_000_000]), ..Sketch::default() },
        Sketch { size: Some([1 << 33, 16]), ..Sketch::default() },
        Sketch { batch: Some(1 << 31), ..Sketch::default() },
        Sketch { batch: Some(i64::MAX as usize), size: Some([i64::MAX as usize; 2]), ..Sketch::default() },
        Sketch { batch: Some(256), size: Some([4096, 4096]), ..Sketch::default() },
    ];
    for sketch in &sketches {
        let said = reason(&written(folder.path(), sketch, None));
        // ONNX Runtime itself refuses some whose products overflow.
        assert!(said.contains("at most 256 pictures") || said.contains("overflow"), "{said}");
    }
    let mut preprocessor = small_preprocessor();
    preprocessor["size"] = json!({"height": 4_000_000_000_u32, "width": 4_000_000_000_u32});
    preprocessor["do_center_crop"] = json!(false);
    let said = reason(&written(folder.path(), &Sketch::default(), Some(&preprocessor)));
    assert!(said.contains("size is") && said.contains("4096"), "{said}");
}

#[test]
fn kernels_and_dimensions_that_cannot_be_do_not_stop_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), &Sketch::default(), Some(&small_preprocessor()));
    let good = fs_err::read(&file).unwrap();
    for (side, raw) in [(0, 0), (-1, 0), (100_000, 0), (i64::MAX, 0), (65, DIM * 3 * 65 * 65 * 4)] {
        let raw = vec![0; raw];
        let mut model = onnx_rs::parse(&good).unwrap();
        let graph = model.graph.as_mut().unwrap();
        graph.initializer.insert(0, TensorProto::from_raw("odd", vec![DIM as i64, 3, side, side], DataType::Float, &raw));
        // Nothing reads what it answers, so that it need not be run.
        let strides = Attribute { name: "strides", r#type: AttributeType::Ints, ints: vec![side, side], ..Attribute::default() };
        let input = vec!["pixel_values", "odd"];
        let conv = Node { op_type: OpType::Conv, input, output: vec!["unread"], attribute: vec![strides], ..Node::default() };
        graph.node.insert(0, conv);
        fs_err::write(&file, onnx_rs::encode(&model)).unwrap();
        // ONNX Runtime may refuse the graph. Where it does not, the patches are found without this kernel.
        match Model::open(&file) {
            Ok(model) => assert_eq!(model.manifest().patch_size, 16, "{side}"),
            Err(error) => assert!(matches!(error, ModelError::Graph { .. } | ModelError::Run(_)), "{side}: {error}"),
        }
    }
}

#[test]
fn graphs_in_graphs_without_end_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("deep.onnx");
    // Graph 7 of a model, then node 1, attribute 5 and graph 6 of each other: written from the inside out, backwards.
    let mut backwards = Vec::new();
    let mut wrap = |field: u8| {
        let mut length = backwards.len();
        let mut header = vec![field << 3 | 2];
        while length >= 0x80 {
            header.push(length as u8 | 0x80);
            length >>= 7;
        }
        header.push(length as u8);
        backwards.extend(header.iter().rev());
    };
    for _ in 0..100_000 {
        [6, 5, 1].into_iter().for_each(&mut wrap);
    }
    wrap(7);
    backwards.reverse();
    fs_err::write(&file, backwards).unwrap();
    assert!(reason(&file).contains("deep.onnx is no model for this server"));
}

#[test]
fn a_file_that_is_replaced_while_it_is_loaded_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for external in [false, true] {
        let file = written(folder.path(), &Sketch { external, ..Sketch::default() }, Some(&small_preprocessor()));
        let model = Model::open(&file).unwrap();
        assert_eq!(model.sessions(&SessionOptions::default(), 2).unwrap().len(), 2);
        if external {
            let weights = folder.path().join("model.onnx_data");
            let mut bytes = fs_err::read(&weights).unwrap();
            bytes[7] ^= 0x10;
            fs_err::write(&weights, bytes).unwrap();
        } else {
            Sketch { registers: 1, ..Sketch::default() }.write(&file);
        }
        let error = model.sessions(&SessionOptions::default(), 1).unwrap_err();
        assert!(matches!(error, ModelError::Changed { .. }), "{error}");
    }
}
