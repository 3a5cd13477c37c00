//! Where the program looks for ONNX Runtime: a library runs as soon as it is loaded, so it may not come from a folder of others.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use crate::{
    harness::{program, root, tiny_model},
    pictures::{png, scene},
};

const LIBRARY: &str = "libonnxruntime.so";

/// An installed program in a folder of its own, and what lies beside it.
struct Installed {
    folder: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("opt/dino/bin");
        fs_err::create_dir_all(&place).unwrap();
        fs_err::create_dir_all(folder.path().join("home/pictures")).unwrap();
        // By a process of its own: a child that another test starts meanwhile would hold the file open for writing, and it could not be run.
        let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_dino-server")).arg(&place).status();
        assert!(copied.unwrap().success());
        fs_err::write(folder.path().join("home/pictures/a.png"), png(&scene(32, 32, 1))).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file that is no library: the program that loads it says so.
    fn plant(&self, folder: &str) {
        fs_err::create_dir_all(self.path(folder)).unwrap();
        fs_err::write(self.path(folder).join(LIBRARY), "planted").unwrap();
    }

    /// Embeds a picture, with the current folder `home`, and without a hint where the library is.
    fn embed(&self) -> Output {
        let mut command = std::process::Command::new(self.path("opt/dino/bin/dino-server"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(self.path("home"));
        command.args(["embed", "--images", "pictures", "--out", "out.npy", "--model"]).arg(tiny_model());
        command.output().unwrap()
    }
}

/// The library of this project, or the one that `ORT_DYLIB_PATH` names.
fn library() -> PathBuf {
    let named = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
    named.map_or_else(|| root().join(".cache/onnxruntime").join(LIBRARY), PathBuf::from).canonicalize().unwrap()
}

#[test]
fn a_library_that_was_planted_where_others_may_write_is_not_loaded() {
    let installed = Installed::new();
    for folder in ["", "home", "home/.cache/onnxruntime", ".cache/onnxruntime", "opt/.cache/onnxruntime", "opt/dino/.cache/onnxruntime"] {
        installed.plant(folder);
    }
    // Not even where the program lies as in a build tree.
    fs_err::write(installed.path("opt/dino/Cargo.toml"), "[package]\nname = \"dino-server\"\n").unwrap();
    let output = installed.embed();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains(&*installed.folder.path().to_string_lossy()), "{text}");
    // Unless the system has one, it says what to do.
    assert!(output.status.success() || text.contains("none was found") && text.contains("ORT_DYLIB_PATH"), "{text}");
}

#[test]
fn a_library_beside_the_program_is_loaded() {
    let installed = Installed::new();
    std::os::unix::fs::symlink(library(), installed.path("opt/dino/bin").join(LIBRARY)).unwrap();
    let output = installed.embed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(installed.path("home/out.npy").is_file());
}

#[test]
fn a_program_in_its_build_tree_finds_the_library_of_the_project_from_anywhere() {
    if !Path::new(env!("CARGO_BIN_EXE_dino-server")).starts_with(root().join("target")) {
        // Built elsewhere (CARGO_TARGET_DIR): then the environment has to name the library.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs_err::create_dir_all(folder.path().join("pictures")).unwrap();
    fs_err::write(folder.path().join("pictures/a.png"), png(&scene(32, 32, 1))).unwrap();
    let mut command = program();
    command.env_remove("ORT_DYLIB_PATH").current_dir(folder.path());
    let output = command.args(["embed", "--images", "pictures", "--out", "out.npy", "--model"]).arg(tiny_model()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
