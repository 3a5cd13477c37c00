//! Which modules of each crate may use which: data flows one way, and a new circle fails here.
//!
//! A module is a file or a folder directly in a crate's source. Its line names all modules of the same crate that it uses.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Module, and the modules that it may use. `main` and `lib` put the others together.
type Layers = &'static [(&'static str, &'static [&'static str])];

const SERVER: Layers = &[
    ("traces", &[]),
    ("flags", &[]),
    ("encoding", &[]),
    ("index", &[]),
    ("telemetry", &["traces"]),
    ("fetch", &["flags"]),
    ("files", &["encoding", "index"]),
    ("serving", &["flags", "traces"]),
    ("embedding_cache", &["flags"]),
    ("http", &["embedding_cache", "encoding", "fetch", "flags", "index", "serving", "telemetry", "traces"]),
    ("config", &["embedding_cache", "fetch", "http", "index", "serving", "telemetry"]),
    ("cli", &["config", "embedding_cache", "encoding", "fetch", "files", "flags", "http", "index", "serving", "telemetry", "traces"]),
];

const VISION: Layers = &[
    ("cancel", &[]),
    ("cores", &[]),
    ("links", &[]),
    ("pooling", &[]),
    ("protobuf", &[]),
    ("unicode", &[]),
    ("unit_rows", &[]),
    ("splitmix", &[]),
    ("vote", &[]),
    ("batch", &[]),
    ("media", &[]),
    ("transform", &[]),
    ("byte_rows", &["cancel"]),
    ("duplicates", &["byte_rows", "cancel"]),
    ("lanczos", &["cancel", "splitmix"]),
    ("tsne", &["cancel", "lanczos", "unit_rows"]),
    ("mask_defaults", &["transform"]),
    ("model", &["cores", "links", "mask_defaults", "pooling", "protobuf", "transform"]),
    ("embedding", &["model", "pooling", "unit_rows"]),
    ("segment", &["cancel", "lanczos", "mask_defaults", "media", "model", "splitmix", "transform"]),
    // Names of its own must not be those of attention heads.
    ("head", &["embedding", "model", "segment"]),
    ("dense", &["cancel", "embedding", "head", "model", "transform"]),
    ("anomaly", &["byte_rows", "cancel", "lanczos", "segment", "transform"]),
    ("in_context", &["anomaly", "byte_rows", "cancel", "segment", "splitmix", "transform"]),
    ("correspondence", &["anomaly", "cancel", "lanczos", "splitmix", "transform"]),
    ("workers", &["batch", "cores", "model"]),
    ("agreement", &["batch", "model", "unit_rows"]),
    ("placement", &["agreement", "batch", "cores", "model", "workers"]),
    ("bulk", &["batch", "cores", "embedding", "media", "model", "placement", "transform", "unicode"]),
];

const TRAINING: Layers = &[
    ("process", &[]),
    ("files", &[]),
    ("kernels", &[]),
    ("exchange", &[]),
    ("device", &["exchange"]),
    ("log", &["files"]),
    ("ops", &["exchange", "kernels"]),
    ("backbone", &["exchange", "kernels", "ops"]),
    ("data", &[]),
    ("weights", &["backbone", "data", "kernels"]),
    ("dino", &["backbone", "exchange", "kernels", "ops"]),
    ("show", &["backbone", "files", "log"]),
    ("evaluate", &["backbone", "data", "exchange", "files", "log", "show", "weights"]),
    ("export", &["process", "show", "weights"]),
    ("run", &["backbone", "data", "device", "dino", "evaluate", "exchange", "files", "kernels", "log", "ops", "show", "weights"]),
    ("finetune", &["backbone", "dino", "exchange", "files", "run"]),
    ("distill", &["backbone", "dino", "exchange", "finetune", "run"]),
    (
        "cli",
        &[
            "backbone", "data", "device", "distill", "evaluate", "exchange", "export", "files", "finetune", "kernels", "log", "process",
            "run", "show", "weights",
        ],
    ),
];

/// Crates that live inside of the server's source.
const INNER: [&str; 3] = ["hub", "program", "vision"];

/// Names behind `crate::` and the crate's own name, also those in a group of `use`.
fn used(text: &str, own_name: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    // What tests use is no part of the building.
    let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let name = |text: &str| text.trim_start().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for prefix in ["crate::", &format!("{own_name}::")] {
        for (at, _) in code.match_indices(prefix) {
            // `$crate::` in macros counts, `other_crate::` does not.
            if code[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_') {
                continue;
            }
            let rest = &code[at + prefix.len()..];
            let Some(group) = rest.strip_prefix('{') else {
                found.insert(name(rest));
                continue;
            };
            let mut depth = 0;
            let mut start = true;
            for (at, letter) in group.char_indices() {
                if start && depth == 0 && !letter.is_whitespace() && letter != '}' {
                    found.insert(name(&group[at..]));
                    start = false;
                }
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    _ => {}
                }
            }
        }
    }
    found
}

fn check(source: &str, own_name: &str, layers: Layers) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in walkdir::WalkDir::new(&root).into_iter().map(Result::unwrap) {
        let path = entry.path().strip_prefix(&root).unwrap();
        let Some(first) = path.iter().next().and_then(|part| part.to_str()) else { continue };
        let is_source = path.extension().is_some_and(|end| end == "rs");
        if !is_source || source == "src" && INNER.contains(&first) || ["lib.rs", "main.rs"].contains(&first) {
            continue;
        }
        let text = fs_err::read_to_string(entry.path()).unwrap();
        modules.entry(first.trim_end_matches(".rs").to_owned()).or_default().extend(used(&text, own_name));
    }
    let names: BTreeSet<String> = modules.keys().cloned().collect();
    let listed: BTreeSet<String> = layers.iter().map(|(module, _)| (*module).to_owned()).collect();
    assert_eq!(names, listed, "the modules of {source} are those of its list in tests/imports.rs");
    for (at, (module, allowed)) in layers.iter().enumerate() {
        let earlier = |other: &&str| layers[..at].iter().any(|(module, _)| module == other);
        assert!(allowed.iter().all(earlier), "{source}: the list of `{module}` names a module that comes after it: a circle");
        for other in modules[*module].iter().filter(|other| *other != module && names.contains(*other)) {
            assert!(allowed.contains(&other.as_str()), "{source}: `{module}` uses `{other}`, which tests/imports.rs does not allow");
        }
    }
}

#[test]
fn data_flows_one_way() {
    check("src", "dino_server", SERVER);
    check("src/vision", "dino_vision", VISION);
    check("training/src", "dino_train", TRAINING);
}

/// The two stores know the traits and types of `index`, and nothing of each other.
#[test]
fn stores_do_not_use_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/index");
    for (store, other) in [("embedded", "postgres"), ("postgres", "embedded")] {
        for entry in walkdir::WalkDir::new(root.join(store)).into_iter().map(Result::unwrap) {
            if entry.path().extension().is_some_and(|end| end == "rs") {
                let text = fs_err::read_to_string(entry.path()).unwrap();
                assert!(!text.contains(&format!("{other}::")), "{} uses {other}", entry.path().display());
            }
        }
    }
}

#[test]
fn each_room_has_its_place_in_the_tables() {
    let text = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next()).collect();
    let missing = [SERVER, VISION, TRAINING].into_iter().flatten().map(|(module, _)| *module);
    let missing: Vec<&str> =
        missing.filter(|module| !rows.iter().any(|row| row.split(", `").any(|name| name == format!("{module}`")))).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md has no row for {missing:?}");
}

/// Files of the modules that the module in `file` declares as public.
fn public_modules(file: &Path) -> Vec<PathBuf> {
    let is_folder = file.ends_with("lib.rs") || file.ends_with("mod.rs");
    let folder = if is_folder { file.parent().unwrap().to_owned() } else { file.with_extension("") };
    let text = fs_err::read_to_string(file).unwrap();
    let names = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let of = |name: &str| [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")];
    names.map(|name| of(name).into_iter().find(|file| file.exists()).unwrap()).collect()
}

/// Whether a module's documentation holds an example that `cargo test --doc` compiles.
fn has_example(text: &str) -> bool {
    let documentation = text.lines().take_while(|line| line.starts_with("//!"));
    // Every second fence closes a block.
    documentation.filter(|line| line.starts_with("//! ```")).step_by(2).any(|fence| ["//! ```", "//! ```no_run"].contains(&fence))
}

/// The commands of `dino-train` have no example each: its `main.rs` alone calls them.
#[test]
fn each_public_module_has_an_example() {
    let mut missing = Vec::new();
    for library in ["src", "src/hub", "src/program", "src/vision", "training/src"] {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join(library).join("lib.rs");
        let mut files = public_modules(&library);
        if files.is_empty() {
            files.push(library);
        }
        while let Some(file) = files.pop() {
            if !file.ends_with("cli/mod.rs") {
                files.extend(public_modules(&file));
            }
            if !has_example(&fs_err::read_to_string(&file).unwrap()) {
                missing.push(file);
            }
        }
    }
    assert!(missing.is_empty(), "no example in the documentation of {missing:?}");
}

#[test]
fn a_block_of_another_language_is_no_example() {
    assert!(has_example("//! Adds.\n//!\n//! ```text\n//! 1 + 1\n//! ```\n//! ```\n//! assert_eq!(1 + 1, 2);\n//! ```\n"));
    assert!(!has_example("//! Adds.\n//!\n//! ```text\n//! 1 + 1\n//! ```\n\n/// ```\n/// assert_eq!(1 + 1, 2);\n/// ```\n"));
}

#[test]
fn a_group_of_imports_is_read_whole() {
    let text = "use crate::{\n    a::{self, b, c::{d}},\n    e,\n};\nlet x = crate::f::g(); // crate::h\n    // crate::i\nother_crate::j;";
    let found: Vec<String> = used(text, "own").into_iter().collect();
    assert_eq!(found, ["a", "e", "f", "h"]);
}

/// The programs' dependencies end where they should: the trainer has no server in it, and the server no trainer.
#[test]
fn crates_depend_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let normal = |manifest: &str| {
        let text = fs_err::read_to_string(root.join(manifest)).unwrap();
        text.split("[dev-dependencies]").next().unwrap().to_owned()
    };
    for (manifest, absent) in [
        ("training/Cargo.toml", ["dino-server", "axum", "sqlx", "redb"].as_slice()),
        ("src/vision/Cargo.toml", &["dino-server", "dino-program", "dino-train", "dino-hub", "axum", "ureq", "clap"]),
        ("src/program/Cargo.toml", &["dino-server", "dino-vision", "dino-train"]),
        ("src/hub/Cargo.toml", &["dino-server", "dino-vision", "dino-train", "axum", "ort", "clap"]),
        ("Cargo.toml", &["dino-train", "candle"]),
    ] {
        for name in absent {
            let is_dependency =
                normal(manifest).lines().any(|line| line.starts_with(&format!("{name} =")) || line.starts_with(&format!("{name}-")));
            assert!(!is_dependency, "{manifest} names {name}");
        }
    }
}
