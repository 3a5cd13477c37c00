//! Finding and starting ONNX Runtime, once per process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;

/// Environment variable with the path of the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// Where the Makefile puts the library, under the root of the project.
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
/// The library is that of `ORT_DYLIB_PATH`; else `.cache/onnxruntime/libonnxruntime.so` under a folder above the
/// executable, or under the current one; else what the system's loader finds. Folders above the current one are not
/// searched: they may belong to somebody else.
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
/// The first thing that a `main` calls, before there are other threads. A value of `ORT_DISABLE_TELEMETRY` that is set already stays.
pub fn keep_quiet() {
    const SWITCH: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(SWITCH).is_none() {
        // SAFETY: no other thread exists yet that could read the environment.
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
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).unwrap_or_default();
    let current = std::env::current_dir().unwrap_or_default();
    let cached = executable
        .ancestors()
        .skip(1)
        .chain([current.as_path()])
        .map(|folder| folder.join(CACHED).join(LIBRARY))
        .find(|path| path.is_file());
    (cached.unwrap_or_else(|| LIBRARY.into()), false)
}

#[cfg(test)]
mod tests {
    use super::RuntimeError;

    #[test]
    fn the_error_is_one_sentence_with_a_way_out() {
        let text = RuntimeError { found: "none was found".into() }.to_string();
        assert!(text.starts_with("ONNX Runtime 1.") && text.contains("make onnxruntime"), "{text}");
        assert!(text.contains("ORT_DYLIB_PATH") && !text.contains('\n') && !text.contains(". "), "{text}");
    }
}
