//! `dino-server openapi` and `dino-server manifest-schema`: documents that are made from the code.

use serde_json::Value;

/// Prints a document.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn print(document: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(document)?);
    Ok(())
}
