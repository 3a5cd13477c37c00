//! Builds that follow each other share what was compiled: each asks for the dependencies of the one before it with the same
//! features. Where this fails, name the features in `Cargo.toml` beside those that are "not used by name".

#![expect(clippy::unwrap_used, reason = "helpers of tests, as the tests themselves")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

/// Of each dependency, the lists of features that it is compiled with: one for programs, another for build scripts and macros.
fn features(selection: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--no-dedupe", "--format", "{p}|{f}"])
        .args(selection)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut features = BTreeMap::<String, BTreeSet<String>>::new();
    // Trees of several packages have an empty line between them.
    for (package, list) in String::from_utf8(output.stdout).unwrap().lines().filter_map(|line| line.split_once('|')) {
        // Packages of the workspace have their folder behind the version.
        if !package.contains(" (/") {
            features.entry(package.to_owned()).or_default().insert(list.to_owned());
        }
    }
    features
}

#[test]
fn builds_share_their_dependencies() {
    const NORMAL: &str = "--edges=normal,build";
    let builds: [(&str, &[&str]); 4] = [
        ("make serve", &[NORMAL, "--no-default-features"]),
        ("cargo build", &[NORMAL]),
        ("cargo build --workspace", &[NORMAL, "--workspace"]),
        ("cargo test --workspace", &["--edges=normal,build,dev", "--workspace"]),
    ];
    let builds = builds.map(|(name, selection)| (name, features(selection)));
    assert!(builds[0].1.len() > 300 && !builds[0].1.keys().any(|package| package.starts_with("arrow")));
    for pair in builds.windows(2) {
        let [(first, before), (second, after)] = pair else { unreachable!() };
        for (package, lists) in before {
            let others = &after[package];
            // Not all lists: `cargo tree` may leave out one that a macro's dependency has.
            assert!(!lists.is_disjoint(others), "{first} compiles {package} with {lists:?}, {second} with {others:?}");
        }
    }
}
