//! The command line of the trainer.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dino_train::cli;

/// Train DINO vision backbones, evaluate them, and export them for `dino-server`.
#[derive(Parser)]
#[command(name = "dino-train", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Export(cli::export::Args),
    Knn(cli::knn::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,ort=warn".into()),
        )
        .init();
    let result = match cli.verb {
        Verb::Export(args) => cli::export::run(&args),
        Verb::Knn(args) => cli::knn::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
