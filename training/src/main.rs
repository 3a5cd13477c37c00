//! The command line of the trainer.

#![deny(unsafe_code)]

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use dino_program::manuals::{Manual, VERSION};
use dino_train::cli;
use dino_train::exchange::launcher::Launched;

/// Tensors of a training step are freed and allocated again at the same sizes: an allocator that keeps its pages saves their faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train DINO vision backbones, evaluate them, and export them for `dino-server`.
#[derive(Parser)]
#[command(name = "dino-train", version = VERSION.as_str())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Train(Box<cli::train::Args>),
    Export(cli::export::Args),
    Knn(cli::knn::Args),
    Linear(cli::linear::Args),
    Finetune(Box<cli::finetune::Args>),
    Distill(Box<cli::distill::Args>),
    Attention(cli::attention::Args),
    Tsne(cli::tsne::Args),
    Pca(cli::pca::Args),
    Report(cli::report::Args),
    SegmentEval(cli::segment_eval::Args),
    AnomalyEval(cli::anomaly_eval::Args),
    VideoEval(cli::video_eval::Args),
    CopyEval(cli::copy_eval::Args),
    RetrievalEval(cli::retrieval_eval::Args),
    /// Write shell completions or manual pages.
    #[command(subcommand)]
    Manual(Manual),
}

fn main() -> ExitCode {
    #[expect(unsafe_code, reason = "it changes the environment, which other threads could read")]
    // SAFETY: this is the first statement of the program, and no other thread has been started.
    unsafe {
        dino_train::process::prepare();
    }
    let matches = Cli::command().get_matches_from(cli::public::with_dashes(std::env::args_os()));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // Of the processes of one run, only the first tells how it goes; where the variables make no sense, each says so.
    let tells = Launched::from_environment().ok().flatten().is_none_or(|launched| launched.place.rank == 0);
    let level = if tells { "info,ort=warn" } else { "warn" };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into()))
        .init();
    // These end by themselves at a signal: they save a checkpoint first.
    if !matches!(cli.verb, Verb::Train(_) | Verb::Finetune(_) | Verb::Distill(_)) {
        dino_program::signals::end_as_process_1();
    }
    let result = match &cli.verb {
        Verb::Train(args) => cli::train::run(args, matches.subcommand_matches("train").unwrap_or(&matches)),
        Verb::Export(args) => cli::export::run(args),
        Verb::Knn(args) => cli::knn::run(args),
        Verb::Linear(args) => cli::linear::run(args),
        Verb::Finetune(args) => cli::finetune::run(args, matches.subcommand_matches("finetune").unwrap_or(&matches)),
        Verb::Distill(args) => cli::distill::run(args, matches.subcommand_matches("distill").unwrap_or(&matches)),
        Verb::Attention(args) => cli::attention::run(args),
        Verb::Tsne(args) => cli::tsne::run(args),
        Verb::Pca(args) => cli::pca::run(args),
        Verb::Report(args) => cli::report::run(args),
        Verb::SegmentEval(args) => cli::segment_eval::run(args),
        Verb::AnomalyEval(args) => cli::anomaly_eval::run(args),
        Verb::VideoEval(args) => cli::video_eval::run(args),
        Verb::CopyEval(args) => cli::copy_eval::run(args),
        Verb::RetrievalEval(args) => cli::retrieval_eval::run(args),
        Verb::Manual(manual) => manual.write(Cli::command()).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            // What the parser cannot tell is wrong usage too.
            if error.is::<cli::Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
