//! Finds ONNX Runtime.

use std::path::{Path, PathBuf};

/// Loads the library of ONNX Runtime: from `ORT_DYLIB_PATH`, else the project's cache folder, else the system.
///
/// # Errors
/// If there is none, or it is too old.
pub(crate) fn environment() -> Result<ort::environment::Environment, ort::Error> {
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/onnxruntime/libonnxruntime.so");
    let path = match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) => PathBuf::from(path),
        None if cached.exists() => cached,
        None => PathBuf::from("libonnxruntime.so"),
    };
    ort::init_from(path).map_err(ort::Error::wrap)?.build()
}
