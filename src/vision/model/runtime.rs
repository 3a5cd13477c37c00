//! Finding and starting ONNX Runtime, once per process.
//!
//! ```
//! // At the start of a program: a library that is missing is reported before any model is read.
//! if let Err(error) = dino_vision::model::runtime::environment() {
//!     assert!(error.to_string().contains("make onnxruntime"));
//! }
//! ```

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;

/// Environment variable with the path of the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The project's folder, as it was when this program was built.
const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Environment variable with the path of OpenVINO's plug-in.
const OPENVINO_VARIABLE: &str = "DINO_OPENVINO_LIBRARY";
/// OpenVINO's plug-in, in the program's own folder or in the project's cache.
const OPENVINO: &str = "openvino/libonnxruntime_providers_openvino_plugin.so";
/// Where the Makefile puts the library, under the project's folder.
const CACHED: &str = ".cache/onnxruntime";
/// The library's name on this system.
const LIBRARY: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// ONNX Runtime cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ONNX Runtime 1.{} or newer is needed and {found}: run `make onnxruntime`, or set {VARIABLE} to the path of {LIBRARY}",
    ort::MINOR_VERSION
)]
pub struct RuntimeError {
    found: String,
}

/// The process's ONNX Runtime, started on first use.
///
/// The library is that of `ORT_DYLIB_PATH`; else `libonnxruntime.so` in the program's own folder; else, for a program in `target` of
/// the folder that it was built in, the one that `make onnxruntime` put into that folder's cache; else what the system's loader finds.
/// A library runs as soon as it is loaded: the current folder, and folders above the program, may belong to other users and are
/// never searched.
///
/// # Errors
/// [`RuntimeError`], the same for every later call.
pub fn environment() -> Result<&'static Environment, RuntimeError> {
    // The runtime must outlive every session, so it is never dropped.
    static ENVIRONMENT: OnceLock<Result<Environment, RuntimeError>> = OnceLock::new();
    ENVIRONMENT.get_or_init(start).as_ref().map_err(Clone::clone)
}

/// Keeps ONNX Runtime from reporting to its makers: the library of the public wheels writes an identifier below the home folder and
/// calls out as soon as it is loaded, before `with_telemetry(false)` can reach it.
///
/// A value of `ORT_DISABLE_TELEMETRY` that is set already stays.
///
/// # Safety
/// The process has one thread: it is the first thing that `main` calls. Others could read the environment while it changes.
#[expect(unsafe_code, reason = "the library reads this switch from the environment, and only there")]
pub unsafe fn disable_telemetry() {
    const SWITCH: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: by the contract of this function no other thread exists that could read the environment.
        unsafe { std::env::set_var(SWITCH, "1") };
    }
}

fn start() -> Result<Environment, RuntimeError> {
    let (library, named) = library();
    if named && !library.is_file() {
        return Err(RuntimeError { found: format!("{VARIABLE} names no file ({})", library.display()) });
    }
    let builder = ort::init_from(&library).map_err(|error| RuntimeError { found: describe(&error) })?;
    builder.with_name("dino").with_telemetry(false).build().map_err(|error| RuntimeError { found: format!("it does not start ({error})") })
}

fn describe(error: &ort::LoadDynamicError) -> String {
    use ort::LoadDynamicError::{BadVersion, Dlopen, InvalidVersionString, MissingApi};
    match error {
        // A bare name is what the system's loader was asked for.
        Dlopen { path, .. } if path.parent() == Some(Path::new("")) => "none was found".to_owned(),
        Dlopen { error, path } => format!("{} does not load ({error})", path.display()),
        MissingApi { path } => format!("{} is another library", path.display()),
        BadVersion { version_str, path } => format!("{} is version {version_str}", path.display()),
        InvalidVersionString => "the one found does not say its version".to_owned(),
    }
}

/// The library to load, and whether the environment variable names it.
fn library() -> (PathBuf, bool) {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return (path.into(), true);
    }
    (installed(LIBRARY, &Path::new(CACHED).join(LIBRARY)).unwrap_or_else(|| LIBRARY.into()), false)
}

/// OpenVINO's plug-in: that of `DINO_OPENVINO_LIBRARY`, or one that lies where ONNX Runtime is searched for, but for the system's folders.
///
/// # Errors
/// Where there is none: how to get it.
pub(super) fn openvino_library() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(OPENVINO_VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(format!("{OPENVINO_VARIABLE} names no file ({})", path.display())) };
    }
    installed(OPENVINO, &Path::new(".cache").join(OPENVINO))
        .ok_or_else(|| format!("OpenVINO's plug-in was not found: run `make openvino`, or set {OPENVINO_VARIABLE} to its path"))
}

/// A library in the program's own folder, or in that of the project which the program was built in.
fn installed(own: &str, in_project: &Path) -> Option<PathBuf> {
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let project = Path::new(PROJECT).canonicalize().ok();
    candidates(&program, project.as_deref(), own, in_project).into_iter().find(|path| path.is_file())
}

/// Where the library may lie for a program at `program`, before the system is asked; `project` is the folder that it was built in,
/// where that is still there. Both without links, so that neither is another folder than it seems.
fn candidates(program: &Path, project: Option<&Path>, own: &str, in_project: &Path) -> Vec<PathBuf> {
    let own = program.parent().filter(|folder| folder.is_absolute()).map(|folder| folder.join(own));
    // An installed program was built somewhere as well, in a folder that this machine's users may be free to make.
    let project = project.filter(|project| program.starts_with(project.join("target")));
    own.into_iter().chain(project.map(|project| project.join(in_project))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{CACHED, LIBRARY, RuntimeError, candidates};

    #[test]
    fn the_error_is_one_sentence_with_a_way_out() {
        let text = RuntimeError { found: "none was found".into() }.to_string();
        assert!(text.starts_with("ONNX Runtime 1.") && text.contains("make onnxruntime"), "{text}");
        assert!(text.contains("ORT_DYLIB_PATH") && !text.contains('\n') && !text.contains(". "), "{text}");
    }

    #[test]
    fn only_the_programs_own_folder_and_its_build_tree_are_searched() {
        let in_project = Path::new(CACHED).join(LIBRARY);
        let found = |program: &str, project: Option<&str>| candidates(Path::new(program), project.map(Path::new), LIBRARY, &in_project);
        let library = |folder: &str| PathBuf::from(folder).join(LIBRARY);
        let cached = library("/src/dino/.cache/onnxruntime");
        for profile in ["debug", "release", "debug/deps", "aarch64-unknown-linux-gnu/release"] {
            let folder = format!("/src/dino/target/{profile}");
            assert_eq!(found(&format!("{folder}/dino-server"), Some("/src/dino")), [library(&folder), cached.clone()]);
        }
        assert_eq!(found("/usr/local/bin/dino-server", Some("/src/dino")), [library("/usr/local/bin")]);
        assert_eq!(found("/src/dino/target/debug/dino-server", None), [library("/src/dino/target/debug")]);
        assert_eq!(found("/src/dino/targets/dino-server", Some("/src/dino")), [library("/src/dino/targets")]);
        assert_eq!(found("", Some("/src/dino")), Vec::<PathBuf>::new());
    }
}
