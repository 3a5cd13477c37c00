//! Files that checkpoints come in: other number types, views, shards, files from before the zip container, and files
//! that are cut or made to do harm.

mod common;

use std::path::Path;

use common::torch::{Pickle, save, save_state};
use common::{Tensors, bundled_golden, little_endian, read, write};
use dino_train::weights::{Error, Tensor, open};
use half::{bf16, f16};

fn tensor(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor { shape: shape.to_vec(), data: data.to_vec() }
}

#[test]
fn views_of_a_shared_storage_with_offsets_and_strides() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("views.pth");
    // One storage 0..12: its first half, its transpose as 4 x 3, every other number from 1, one number.
    let pickle = Pickle::new()
        .raw(b"}(")
        .text("half")
        .view("FloatStorage", "0", 12, 0, &[6], &[1])
        .text("transpose")
        .view("FloatStorage", "0", 12, 0, &[4, 3], &[1, 4])
        .text("other")
        .view("FloatStorage", "0", 12, 1, &[5], &[2])
        .text("one")
        .view("FloatStorage", "0", 12, 7, &[], &[])
        .raw(b"u")
        .end();
    let numbers: Vec<f32> = (0..12).map(|number| number as f32).collect();
    save(&file, &pickle, &[("0".to_owned(), little_endian(&numbers))]);
    let store = open(&file).unwrap();
    assert_eq!(store.read("half").unwrap(), tensor(&[6], &numbers[..6]));
    let transpose = [0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0];
    assert_eq!(store.read("transpose").unwrap(), tensor(&[4, 3], &transpose));
    assert_eq!(store.read("other").unwrap(), tensor(&[5], &[1.0, 3.0, 5.0, 7.0, 9.0]));
    assert_eq!(store.read("one").unwrap(), tensor(&[], &[7.0]));
}

#[test]
fn numbers_of_every_width_become_float32() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("types.pth");
    let values = [1.5_f32, -2.0, 0.25];
    let bytes = |encode: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|value| encode(*value)).collect::<Vec<_>>();
    let kinds = [
        ("HalfStorage", bytes(&|value| f16::from_f32(value).to_le_bytes().to_vec())),
        ("BFloat16Storage", bytes(&|value| bf16::from_f32(value).to_le_bytes().to_vec())),
        ("DoubleStorage", bytes(&|value| f64::from(value).to_le_bytes().to_vec())),
        ("FloatStorage", bytes(&|value| value.to_le_bytes().to_vec())),
    ];
    let mut pickle = Pickle::new().raw(b"}(");
    let mut storages = Vec::new();
    for (kind, bytes) in kinds {
        pickle = pickle.text(kind).view(kind, kind, 3, 0, &[3], &[1]);
        storages.push((kind.to_owned(), bytes));
    }
    pickle = pickle.text("LongStorage").view("LongStorage", "long", 2, 0, &[2], &[1]);
    storages.push(("long".to_owned(), [5_i64, -7].map(i64::to_le_bytes).concat()));
    save(&file, &pickle.raw(b"u").end(), &storages);
    let store = open(&file).unwrap();
    for kind in ["HalfStorage", "BFloat16Storage", "DoubleStorage", "FloatStorage"] {
        assert_eq!(store.read(kind).unwrap(), tensor(&[3], &values), "{kind}");
    }
    assert_eq!(store.read("LongStorage").unwrap(), tensor(&[2], &[5.0, -7.0]));
}

#[test]
fn shards_are_one_checkpoint() {
    let work = tempfile::tempdir().unwrap();
    let all = read(&bundled_golden().join("checkpoints/hf-dinov2/model.safetensors"));
    let (mut first, mut second, mut map) = (Tensors::new(), Tensors::new(), serde_json::Map::new());
    for (index, (name, tensor)) in all.iter().enumerate() {
        let (file, shard) = if index % 2 == 0 { ("a.safetensors", &mut first) } else { ("b.safetensors", &mut second) };
        shard.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), file.into());
    }
    write(&work.path().join("a.safetensors"), &first, &[]);
    write(&work.path().join("b.safetensors"), &second, &[]);
    let index = work.path().join("model.safetensors.index.json");
    fs_err::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let store = open(&index).unwrap();
    assert_eq!(store.names().count(), all.len());
    assert!(all.iter().all(|(name, tensor)| store.read(name).unwrap() == *tensor));

    // Tied weights are in both; what is not the same is no copy.
    let (name, tensor) = second.first_key_value().map(|(name, tensor)| (name.clone(), tensor.clone())).unwrap();
    let mut tied = first.clone();
    tied.insert(name.clone(), tensor);
    write(&work.path().join("a.safetensors"), &tied, &[]);
    assert_eq!(open(&index).unwrap().names().count(), all.len());
    tied.get_mut(&name).unwrap().data[0] += 1.0;
    write(&work.path().join("a.safetensors"), &tied, &[]);
    let error = open(&index).unwrap_err().to_string();
    assert!(error.contains(&format!("tensor {name} is there twice")), "{error}");
    write(&work.path().join("a.safetensors"), &first, &[]);

    fs_err::write(&index, r#"{"weight_map": {"x": "c.safetensors"}}"#).unwrap();
    let error = open(&index).unwrap_err().to_string();
    assert!(error.contains("model.safetensors.index.json") && error.contains("it names c.safetensors"), "{error}");
    fs_err::write(&index, r#"{"weight_map": {"x": "../a.safetensors"}}"#).unwrap();
    assert!(open(&index).unwrap_err().to_string().contains("not a plain file name"));
    fs_err::write(&index, r#"{"weight_map": {"x": "a.safetensors"}}"#).unwrap();
    assert!(open(&index).unwrap_err().to_string().contains("tensor x is in none"));
}

#[test]
fn files_from_before_the_zip_container() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("old.pth");
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    bytes.extend(Pickle::new().int(1001).end());
    bytes.extend(Pickle::new().raw(b"}").end());
    bytes.extend(Pickle::new().raw(b"}(").text("w").tensor("9", &[2, 2]).text("b").tensor("3", &[1]).raw(b"u").end());
    bytes.extend(Pickle::new().raw(b"](").text("3").text("9").raw(b"e").end());
    for numbers in [&[5.0_f32][..], &[1.0, 2.0, 3.0, 4.0]] {
        bytes.extend((numbers.len() as u64).to_le_bytes());
        bytes.extend(little_endian(numbers));
    }
    fs_err::write(&file, &bytes).unwrap();
    let store = open(&file).unwrap();
    assert_eq!(store.read("w").unwrap(), tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    assert_eq!(store.read("b").unwrap(), tensor(&[1], &[5.0]));
    for end in [bytes.len() - 1, bytes.len() / 2, 20] {
        fs_err::write(&file, &bytes[..end]).unwrap();
        assert!(matches!(open(&file), Err(Error::Damaged { .. })), "cut at {end}");
    }
}

/// Opens a file and reads all its tensors.
fn read_all(file: &Path) -> Result<(), Error> {
    let store = open(file)?;
    store.names().try_for_each(|name| store.read(name).map(drop))
}

#[test]
fn cut_and_changed_files_get_an_answer() {
    let work = tempfile::tempdir().unwrap();
    let sources = [
        ("model.pth", bundled_golden().join("checkpoints/pth-dino-backbone/dino_vit_pretrain.pth")),
        ("model.safetensors", bundled_golden().join("checkpoints/hf-dinov2/model.safetensors")),
    ];
    for (name, source) in sources {
        let file = work.path().join(name);
        let bytes = fs_err::read(source).unwrap();
        for part in 0..32 {
            fs_err::write(&file, &bytes[..bytes.len() * part / 32]).unwrap();
            assert!(read_all(&file).is_err(), "{name} cut at {part}/32");
        }
        for part in 0..32 {
            let mut changed = bytes.clone();
            changed[bytes.len() / 32 * part] ^= 0x55;
            fs_err::write(&file, &changed).unwrap();
            _ = read_all(&file);
        }
        // The descriptions are in the first kilobytes.
        for at in (0..2000).step_by(9) {
            let mut changed = bytes.clone();
            changed[at] = changed[at].wrapping_add(128);
            fs_err::write(&file, &changed).unwrap();
            _ = read_all(&file);
        }
    }
}

#[test]
fn views_outside_their_storage_are_refused_before_memory_is_spent() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("hostile.pth");
    let huge = i32::MAX;
    for (what, offset, shape, strides) in [
        ("longer than the storage", 0, vec![5], vec![1]),
        ("begins behind the storage", 4, vec![1], vec![1]),
        ("strides out of the storage", 0, vec![2], vec![4]),
        ("repeats one number for ever", 0, vec![huge, huge], vec![0, 0]),
        ("overflows", 0, vec![huge; 8], vec![huge; 8]),
        ("has fewer strides than axes", 0, vec![2, 2], vec![1]),
    ] {
        let pickle = Pickle::new().raw(b"}(").text("w").view("FloatStorage", "0", 4, offset, &shape, &strides);
        save(&file, &pickle.raw(b"u").end(), &[("0".to_owned(), vec![0; 16])]);
        let error = read_all(&file).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{what}: {error}");
    }
    for (what, pickle) in [
        ("negative", Pickle::new().raw(b"}(").text("w").view("FloatStorage", "0", 4, 0, &[2], &[-1]).raw(b"u")),
        ("no such storage", Pickle::new().raw(b"}(").text("w").tensor("7", &[4]).raw(b"u")),
    ] {
        save(&file, &pickle.end(), &[("0".to_owned(), vec![0; 16])]);
        assert!(matches!(read_all(&file), Err(Error::Damaged { .. })), "{what}");
    }
}

/// What `expand` makes: one number for many places.
#[test]
fn repeated_numbers_are_read() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("expanded.pth");
    let pickle = Pickle::new().raw(b"}(").text("w").view("FloatStorage", "0", 2, 0, &[3, 2], &[0, 1]);
    save(&file, &pickle.raw(b"u").end(), &[("0".to_owned(), little_endian(&[1.0, 2.0]))]);
    assert_eq!(open(&file).unwrap().read("w").unwrap(), tensor(&[3, 2], &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]));
}

#[test]
fn what_cannot_be_read_is_named_with_the_reason() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("model.pth");
    // 8-bit floats are saved by another function, complex numbers in a storage of their own.
    let eight_bits = Pickle::new().raw(b"}(").text("patch_embed.proj.weight").tensor("0", &[4, 3, 1, 1]).text("cls_token");
    let eight_bits = eight_bits.global("torch._utils", "_rebuild_tensor_v3").raw(b")R").text("norm.weight");
    let pickle = eight_bits.view("ComplexFloatStorage", "1", 1, 0, &[1], &[1]).text("pos_embed").tensor("2", &[1, 5, 4]).raw(b"u").end();
    save(&file, &pickle, &[("0".to_owned(), vec![0; 48]), ("1".to_owned(), vec![0; 8]), ("2".to_owned(), vec![0; 80])]);
    let options = dino_train::weights::Options { heads: Some(1), ..Default::default() };
    let error = dino_train::weights::load(&file, &options).unwrap_err().to_string();
    assert!(
        error.contains("cls_token is saved by torch._utils._rebuild_tensor_v3") && error.contains("norm.weight is saved by"),
        "{error}"
    );
}

#[test]
fn a_whole_module_says_how_to_save_its_weights() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("module.pth");
    let parameters = Pickle::new().global("models", "Net").raw(b")R}(").text("_parameters").raw(b"}(").text("weight").tensor("0", &[1]);
    save(&file, &parameters.raw(b"uub").end(), &[("0".to_owned(), vec![0; 4])]);
    let error = open(&file).unwrap_err().to_string();
    assert!(error.contains("state_dict()"), "{error}");
}

#[test]
fn nothing_in_a_pickle_is_executed() {
    let work = tempfile::tempdir().unwrap();
    let (file, mark) = (work.path().join("hostile.pth"), work.path().join("mark"));
    let call = Pickle::new().global("os", "system").text(&format!("touch {}", mark.display())).raw(b"\x85R");
    save(&file, &call.end(), &[]);
    assert_eq!(open(&file).unwrap().names().count(), 0);
    assert!(!mark.exists());
}

#[test]
fn dictionaries_that_multiply_without_end_are_stopped() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("hostile.pth");
    // Thirty levels, each holding the next one eight times under different keys: 8^30 paths in a kilobyte of pickle.
    let mut pickle = Pickle::new().raw(b"}q\x00");
    for level in 1..30_u8 {
        pickle = pickle.raw(b"}(");
        for key in 0..8 {
            pickle = pickle.int(key).raw(&[b'h', level - 1]);
        }
        pickle = pickle.raw(&[b'u', b'q', level]);
    }
    save(&file, &pickle.end(), &[]);
    assert!(matches!(open(&file), Err(Error::Damaged { .. })));
}

#[test]
fn a_compressed_container_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("model.pth");
    save_state(&file, &Tensors::from([("w".to_owned(), tensor(&[1], &[1.0]))]), false);
    let mut bytes = fs_err::read(&file).unwrap();
    // The method of each entry in the central directory, 8 = deflate.
    let starts: Vec<_> = bytes.windows(4).enumerate().filter(|(_, w)| w == b"PK\x01\x02").map(|(at, _)| at).collect();
    for start in starts {
        bytes[start + 10] = 8;
    }
    fs_err::write(&file, bytes).unwrap();
    assert!(matches!(open(&file), Err(Error::Unsupported(_))));
}

#[test]
fn other_files_are_named_as_such() {
    let work = tempfile::tempdir().unwrap();
    let file = work.path().join("model.bin");
    for (bytes, reason) in [(&b""[..], "empty"), (b"GIF89a", "neither"), (b"\x7fELF and more of it", "neither")] {
        fs_err::write(&file, bytes).unwrap();
        let error = open(&file).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}
