//! The command line of the server.

#![deny(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use dino_program::manuals::{Manual, VERSION};

/// Serves DINO vision backbones: embeddings, k-NN classification and masks over HTTP.
#[derive(Parser)]
#[command(version = VERSION.as_str(), about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve models over HTTP until SIGTERM or SIGINT.
    Serve(Box<dino_server::config::ServeArgs>),
    Healthcheck(cli::healthcheck::Args),
    Embed(cli::embed::Args),
    Import(cli::import::Args),
    Snapshot(cli::snapshot::Args),
    Restore(cli::restore::Args),
    Reembed(cli::reembed::Args),
    Duplicates(cli::duplicates::Args),
    /// Print the OpenAPI document of this version.
    Openapi,
    /// Print the JSON Schema of a model folder's manifest.json.
    ManifestSchema,
    /// Write shell completions or manual pages.
    #[command(subcommand)]
    Manual(Manual),
}

/// Exit codes: 0 for success, 1 for failure, 2 for wrong usage (which clap answers itself).
fn main() -> ExitCode {
    #[expect(unsafe_code, reason = "it changes the environment, which other threads could read")]
    // SAFETY: this is the first statement of the program, and no other thread has been started.
    unsafe {
        dino_vision::model::runtime::disable_telemetry();
    }
    let verb = Cli::parse().verb;
    // The server takes care of them itself.
    if !matches!(verb, Verb::Serve(_)) {
        dino_program::signals::end_as_process_1();
    }
    let outcome = match verb {
        Verb::Serve(args) => cli::serve::run(*args),
        Verb::Healthcheck(args) => cli::healthcheck::run(&args),
        Verb::Embed(args) => cli::embed::run(&args),
        Verb::Import(args) => cli::import::run(&args),
        Verb::Snapshot(args) => cli::snapshot::run(&args),
        Verb::Restore(args) => cli::restore::run(&args),
        Verb::Duplicates(args) => cli::duplicates::run(&args),
        Verb::Openapi => cli::schema::print(&dino_server::http::openapi()),
        Verb::ManifestSchema => cli::schema::print(&dino_vision::model::Manifest::schema()),
        Verb::Reembed(args) => cli::reembed::run(&args),
        Verb::Manual(manual) => manual.write(Cli::command()).map_err(Into::into),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
