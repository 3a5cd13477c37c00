//! `dino-server openapi`: what the routes take and give, for tools that read OpenAPI.

/// Prints the OpenAPI document of this version.
#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run() -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(&dino_server::http::openapi())?);
    Ok(())
}
