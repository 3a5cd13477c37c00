//! `import --table`: pictures that a table describes, and vectors that `embed` wrote.

use std::io::Write as _;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StringDictionaryBuilder};
use arrow_array::types::Int8Type;
use arrow_array::{
    ArrayRef, BinaryArray, Decimal128Array, DictionaryArray, Float64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
    TimestampMicrosecondArray, UInt64Array,
};
use dino_server::index::{Collection, EmbeddedStore, IndexOptions, Item, Search};
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use super::common::{many_pictures, model, other_model, photo, run, text};
use super::sources::tar_of;

fn import(table: &Path, data: &Path, more: &[&str]) -> Output {
    let model = model();
    run(&[&["import"], more].concat(), &[("--table", table), ("--data-dir", data), ("--model", &model)])
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn collection(data: &Path) -> Arc<dyn Collection> {
    EmbeddedStore::open(data, IndexOptions::default()).unwrap().collection(&"default".parse().unwrap()).unwrap()
}

#[test]
fn a_csv_says_what_pictures_are() {
    let folder = tempfile::tempdir().unwrap();
    let (table, data) = (folder.path().join("t.csv"), folder.path().join("data"));
    many_pictures(&folder.path().join("pictures"), 4);
    fs_err::write(folder.path().join("pictures/cut.png"), "text").unwrap();
    let rows = [
        "file,label,year,note",
        "pictures/even/0000.png,cat;round,2001,\"a, b\"",
        "pictures/odd/0001.png,dog,1999,",
        "pictures/cut.png,dog,1999,",
        "pictures/none.png,dog,,",
        ",dog,,",
        "pictures/even/0002.png,,2020,x",
    ];
    fs_err::write(&table, rows.join("\n")).unwrap();
    let flags = ["--label-separator", ";"];
    let output = import(&table, &data, &flags);
    assert!(said(&output).contains("3 stored, 0 unchanged, 3 skipped"), "{}", text(&output.stdout));
    let stderr = text(&output.stderr);
    for word in ["pictures/cut.png: ", "pictures/none.png: ", "row 5 of "] {
        assert_eq!(stderr.matches(word).count(), 1, "{word} in {stderr}");
    }
    let first = collection(&data).get("pictures/even/0000.png").unwrap();
    assert_eq!(first.item.labels, ["cat", "round"]);
    assert_eq!(Value::Object(first.item.metadata), json!({"year": 2001, "note": "a, b"}));
    assert_eq!(collection(&data).get("pictures/even/0002.png").unwrap().item.labels, [""; 0]);
    assert!(collection(&data).thumbnail("pictures/odd/0001.png").is_ok());

    // Again: nothing to do. Another label needs no model to look at the picture, and keeps its thumbnail.
    assert!(said(&import(&table, &data, &flags)).contains("0 stored, 3 unchanged"));
    let rows = rows.join("\n").replace("odd/0001.png,dog", "odd/0001.png,wolf");
    fs_err::write(&table, rows).unwrap();
    assert!(said(&import(&table, &data, &flags)).contains("1 stored, 2 unchanged"));
    let wolf = collection(&data).get("pictures/odd/0001.png").unwrap();
    assert_eq!(wolf.item.labels, ["wolf"]);
    assert!(collection(&data).thumbnail("pictures/odd/0001.png").is_ok());
    let found = collection(&data).search(&wolf.vector, &Search { k: 1, ..Search::default() }).unwrap();
    assert_eq!(found[0].item.labels, ["wolf"]);
}

#[test]
fn a_parquet_table_has_lists_of_labels_and_paths_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (table, data, images) = (folder.path().join("tables/t.parquet"), folder.path().join("data"), folder.path().join("pictures"));
    many_pictures(&images, 2);
    let mut labels = ListBuilder::new(StringBuilder::new());
    labels.append_value([Some("a"), Some("b")]);
    labels.append_null();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("key", Arc::new(StringArray::from(vec!["one", "two"]))),
        ("where", Arc::new(StringArray::from(vec!["even/0000.png", "odd/0001.png"]))),
        ("labels", Arc::new(labels.finish())),
        ("weight", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    fs_err::create_dir(folder.path().join("tables")).unwrap();
    let mut writer = ArrowWriter::try_new(fs_err::File::create(&table).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    let named = ["--path-column", "where", "--id-column", "key", "--images", images.to_str().unwrap()];
    assert!(said(&import(&table, &data, &named)).contains("2 stored"));
    let one = collection(&data).get("one").unwrap().item;
    assert_eq!((one.labels, Value::Object(one.metadata)), (vec!["a".to_owned(), "b".to_owned()], json!({"weight": 0.5})));
    let two = collection(&data).get("two").unwrap().item;
    assert!(two.labels.is_empty() && two.metadata.is_empty());
    // Beside the table there are no such files.
    let output = import(&table, &folder.path().join("other"), &named[..4]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no readable picture"), "{}", text(&output.stderr));
}

/// Writes a table of these columns, compressed in this way.
fn write_parquet(table: &Path, columns: Vec<(&str, ArrayRef)>, compression: Compression) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(false).build();
    let mut writer = ArrowWriter::try_new(fs_err::File::create(table).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn columns_of_every_kind_are_read_or_named() {
    let folder = tempfile::tempdir().unwrap();
    many_pictures(folder.path(), 2);
    let mut words = ListBuilder::new(StringDictionaryBuilder::<Int8Type>::new());
    for word in ["a", "b"] {
        words.values().append_value(word);
        words.append(true);
    }
    let labels: DictionaryArray<Int8Type> = ["cat", "dog"].into_iter().collect();
    let columns = || -> Vec<(&str, ArrayRef)> {
        vec![
            // As older writers have texts.
            ("path", Arc::new(BinaryArray::from(vec![&b"even/0000.png"[..], b"odd/0001.png"]))),
            ("label", Arc::new(labels.clone())),
            ("seen", Arc::new(TimestampMicrosecondArray::from(vec![Some(0), None]).with_timezone("Europe/Berlin"))),
            ("words", Arc::new(words.finish_cloned())),
            ("price", Arc::new(Decimal128Array::from(vec![150, 1]).with_precision_and_scale(5, 2).unwrap())),
            ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
            ("note", Arc::new(LargeStringArray::from(vec![Some("x"), None]))),
            ("view", Arc::new(StringViewArray::from(vec!["a text of more than twelve bytes", ""]))),
            ("bytes", Arc::new(BinaryArray::from(vec![&b"\xff"[..], b""]))),
        ]
    };
    for (name, compression) in [
        ("gzip", Compression::GZIP(GzipLevel::default())),
        ("lz4", Compression::LZ4_RAW),
        ("brotli", Compression::BROTLI(BrotliLevel::default())),
        ("zstd", Compression::ZSTD(ZstdLevel::default())),
    ] {
        let (table, data) = (folder.path().join(format!("{name}.parquet")), folder.path().join(name));
        write_parquet(&table, columns(), compression);
        let output = import(&table, &data, &[]);
        assert!(said(&output).contains("2 stored, 0 unchanged, 0 skipped"), "{name}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("bytes (Binary)"), "{}", text(&output.stderr));
        let item = collection(&data).get("even/0000.png").unwrap().item;
        assert_eq!(item.labels, ["cat"]);
        let known = json!({
            "seen": "1970-01-01T00:00:00Z", "words": ["a"], "price": "1.50", "big": u64::MAX, "note": "x",
            "view": "a text of more than twelve bytes"
        });
        assert_eq!(Value::Object(item.metadata), known, "{name}");
    }

    // A path that is no text is named, and not said to be missing.
    let table = folder.path().join("numbers.parquet");
    let paths: ArrayRef = Arc::new(words.finish());
    write_parquet(&table, vec![("path", paths)], Compression::SNAPPY);
    let output = import(&table, &folder.path().join("none"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("the column path is of type List"), "{}", text(&output.stderr));
}

#[test]
fn names_are_found_in_either_unicode_form() {
    const COMPOSED: &str = "Tür/Größe 1.png";
    const DECOMPOSED: &str = "Tu\u{308}r/Gro\u{308}ße 1.png";
    let folder = tempfile::tempdir().unwrap();
    let photo = photo("flower.jpg");
    let write = |path: &Path| {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, &photo).unwrap();
    };
    for (name, stands, listed) in [("mac", DECOMPOSED, COMPOSED), ("linux", COMPOSED, DECOMPOSED)] {
        let root = folder.path().join(name);
        write(&root.join(stands));
        let mut packed = GzEncoder::new(fs_err::File::create(root.join("t.csv.gz")).unwrap(), flate2::Compression::fast());
        write!(packed, "path,label\n{listed},Tu\u{308}r\n").unwrap();
        packed.finish().unwrap();
        let data = folder.path().join("data").join(name);
        let output = import(&root.join("t.csv.gz"), &data, &[]);
        assert!(said(&output).contains("1 stored, 0 unchanged, 0 skipped"), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("another Unicode form"), "{}", text(&output.stderr));
        assert_eq!(collection(&data).get(COMPOSED).unwrap().item.labels, ["Tür"]);
        // The folder itself, in either form, is the same picture of the same class.
        for tree in ["mac", "linux"] {
            let images = folder.path().join(tree);
            write(&images.join(if tree == "mac" { DECOMPOSED } else { COMPOSED }));
            fs_err::remove_file(images.join("t.csv.gz")).ok();
            let model = model();
            let output = run(&["import"], &[("--images", &images), ("--data-dir", &data), ("--model", &model)]);
            assert!(said(&output).contains("0 stored, 1 unchanged, 0 skipped"), "{}", text(&output.stdout));
        }
    }
    // Two files whose names look the same are two pictures.
    let both = folder.path().join("both");
    write(&both.join(COMPOSED));
    write(&both.join(DECOMPOSED));
    let (data, model) = (folder.path().join("data/both"), model());
    let output = run(&["import"], &[("--images", &both), ("--data-dir", &data), ("--model", &model)]);
    assert!(said(&output).contains("2 stored"), "{}", text(&output.stdout));
    let collection = collection(&data);
    assert!([COMPOSED, DECOMPOSED].iter().all(|id| collection.get(id).unwrap().item.labels == ["Tür"]));
}

#[test]
fn names_inside_of_tar_files_are_composed_as_those_in_folders() {
    const COMPOSED: &str = "Tür/Größe 1.jpg";
    const DECOMPOSED: &str = "Tu\u{308}r/Gro\u{308}ße 1.jpg";
    let folder = tempfile::tempdir().unwrap();
    let (data, model) = (folder.path().join("data"), model());
    let import = |names: &[&str]| {
        let shard = folder.path().join("s.tar");
        tar_of(&shard, &names.iter().map(|&name| (name.to_owned(), photo("flower.jpg"))).collect::<Vec<_>>());
        said(&run(&["import"], &[("--images", &shard), ("--data-dir", &data), ("--model", &model)]))
    };
    // The tree as a Mac packs it, then as others do.
    assert!(import(&[DECOMPOSED]).contains("1 stored, 0 unchanged, 0 skipped"));
    assert!(import(&[COMPOSED]).contains("0 stored, 1 unchanged, 0 skipped; 1 items in all"));
    assert_eq!(collection(&data).get(&format!("s.tar/{COMPOSED}")).unwrap().item.labels, ["Tür"]);
    // Two members whose names look the same are two pictures.
    assert!(import(&[COMPOSED, DECOMPOSED]).contains("1 stored, 1 unchanged, 0 skipped; 2 items in all"));
    assert!(collection(&data).get(&format!("s.tar/{DECOMPOSED}")).is_ok());
}

#[test]
fn a_table_of_vectors_has_an_id_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (data, model) = (at("data"), model());
    many_pictures(&at("images"), 4);
    let embed = |images: &str, table: &str| {
        let output = run(&["embed"], &[("--images", &at(images)), ("--out", &at(table)), ("--model", &model)]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let import = |table: &str, more: &[&str]| run(&[&["import"], more].concat(), &[("--table", &at(table)), ("--data-dir", &data)]);
    let refused = |table: &str, more: &[&str], reason: &str| {
        let output = import(table, more);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(reason), "{}", text(&output.stderr));
        assert!(!data.exists(), "nothing was made");
    };
    fs_err::write(at("list.txt"), "images/even/0000.png\nimages/odd/0001.png\nimages/even/0000.png\n").unwrap();
    let named = embed("list.txt", "twice.parquet");
    assert!(named.contains("1 pictures have an id that came before, the first: images/even/0000.png"), "{named}");
    refused("twice.parquet", &[], r#"rows 1 and 3 have the same id "images/even/0000.png""#);
    let named = embed("images", "once.parquet");
    assert!(!named.contains("came before"), "{named}");
    refused("once.parquet", &["--id-column", "label"], r#"rows 1 and 2 have the same id "even""#);

    // Names that look the same are two.
    fs_err::create_dir(at("both")).unwrap();
    let both = ["\u{fc}.png", "u\u{308}.png"];
    for name in both {
        fs_err::copy(at("images/even/0000.png"), at("both").join(name)).unwrap();
    }
    embed("both", "both.parquet");
    assert!(said(&import("both.parquet", &[])).contains("2 stored, 0 unchanged, 0 skipped"));
    assert!(both.iter().all(|id| collection(&data).get(id).is_ok()));
    // One alone is composed.
    fs_err::remove_file(at("both").join(both[0])).unwrap();
    embed("both", "one.parquet");
    assert!(said(&import("one.parquet", &[])).contains("0 stored, 1 unchanged, 0 skipped"));
    assert!(said(&import("once.parquet", &[])).contains("4 stored, 0 unchanged, 0 skipped; 6 items in all"));
}

#[test]
fn vectors_that_embed_wrote_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (images, table) = (folder.path().join("images"), folder.path().join("v.parquet"));
    many_pictures(&images, 30);
    let model = model();
    let embed = |more: &[&str], out: &Path| {
        said(&run(&[&["embed"], more].concat(), &[("--images", &images), ("--out", out), ("--model", &model)]));
    };
    embed(&[], &table);
    let (from_table, from_pictures) = (folder.path().join("table"), folder.path().join("pictures"));
    // Neither pictures nor a model are needed.
    assert!(said(&run(&["import"], &[("--table", &table), ("--data-dir", &from_table)])).contains("30 stored, 0 unchanged, 0 skipped"));
    said(&run(&["import"], &[("--images", &images), ("--data-dir", &from_pictures), ("--model", &model)]));
    let (one, other) = (collection(&from_table), collection(&from_pictures));
    assert_eq!(one.spec(), other.spec());
    for item in one.page(None, 100).unwrap().items {
        let (a, b) = (one.get(&item.id).unwrap(), other.get(&item.id).unwrap());
        // Pixels are not in the table.
        assert_eq!(a.item, Item { fingerprint: None, ..b.item });
        assert!(a.vector.iter().zip(&b.vector).all(|(a, b)| (a - b).abs() < 1e-6));
    }
    drop((one, other));
    // The pictures are known again, whichever way they come.
    let again = run(&["import"], &[("--images", &images), ("--data-dir", &from_table), ("--model", &model)]);
    assert!(said(&again).contains("0 stored, 30 unchanged"));
    let again = run(&["import"], &[("--table", &table), ("--data-dir", &from_pictures)]);
    assert!(said(&again).contains("0 stored, 30 unchanged"));
    assert!(collection(&from_pictures).thumbnail("odd/0001.png").is_ok());

    let refused = |more: &[&str], paths: &[(&str, &Path)], word: &str| {
        let output = run(&[&["import"], more].concat(), paths);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    };
    let strange = other_model(folder.path());
    refused(&[], &[("--table", &table), ("--data-dir", &from_table), ("--model", &strange)], "give that model");
    let of_strange = folder.path().join("strange.parquet");
    said(&run(&["embed"], &[("--images", &images), ("--out", &of_strange), ("--model", &strange)]));
    refused(&[], &[("--table", &of_strange), ("--data-dir", &from_table)], "use that model, or another collection");
    for (flags, word) in [(["--pooling", "mean"], "pooling mean"), (["--dtype", "int8"], "as int8")] {
        let out = folder.path().join(format!("{}.parquet", flags[1]));
        embed(&flags, &out);
        refused(&[], &[("--table", &out), ("--data-dir", &from_table)], word);
    }
    // With --embed the table is a list of pictures.
    let images_flag = ["--embed", "--images", images.to_str().unwrap()];
    let fresh = folder.path().join("fresh");
    let output = run(&[&["import"], &images_flag[..]].concat(), &[("--table", &of_strange), ("--data-dir", &fresh), ("--model", &model)]);
    assert!(said(&output).contains("30 stored"));
    assert_eq!(collection(&fresh).spec(), collection(&from_table).spec());
}

#[test]
fn tables_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let refused = |name: &str, content: &[u8], code: i32, word: &str| {
        let table = folder.path().join(name);
        fs_err::write(&table, content).unwrap();
        let output = import(&table, &data, &[]);
        assert_eq!(output.status.code(), Some(code));
        assert!(text(&output.stderr).contains(word) && text(&output.stderr).contains(name), "{}", text(&output.stderr));
    };
    refused("t.xlsx", b"PK", 1, ".csv, .tsv or .parquet");
    refused("t.csv", b"a,b\n1,2\n", 1, "no column path");
    refused("u.csv", b"path,label\nx\n", 1, "line: 2");
    refused("v.csv", b"path\n\xff\xfe\n", 1, "UTF-8");
    refused("w.csv", b"path\na\na\n", 1, "rows 1 and 2");
    refused("t.parquet", b"PAR1 and nothing more", 1, "t.parquet");
    assert!(!data.exists(), "nothing was made");
    let usage = run(&["import", "--path-column", "x", "--images", "."], &[("--data-dir", &data)]);
    assert_eq!(usage.status.code(), Some(2));
    assert_eq!(run(&["import"], &[("--data-dir", &data)]).status.code(), Some(2));
}
