//! `dino-train report`: a run as one HTML file.

use std::path::PathBuf;

use crate::run::report::{FILE, Run};

/// Write report.html into a run's folder: curves, pictures and settings in one file. `train` does so after each epoch.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of a training run.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
}

/// Runs the verb.
///
/// # Errors
/// When the folder holds no log, or the report cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    Run::open(&args.run)?.write()?;
    tracing::info!("written to {}", args.run.join(FILE).display());
    Ok(())
}
