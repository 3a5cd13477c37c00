//! `embed --arrow -`: record batches on stdin, the same rows with their vectors on stdout.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _};
use std::os::fd::AsFd as _;

use dino_server::files::stream::{self, Error, Summary};

use super::{Args, header, open};
use crate::cli::open_model;

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(!io::stdin().is_terminal(), "stdin is a terminal: --arrow reads an Arrow stream from a pipe or file there");
    anyhow::ensure!(!io::stdout().is_terminal(), "stdout is a terminal: --arrow writes an Arrow stream to a pipe or file there");
    let model = open_model(&args.model, args.precision)?;
    let header = header(args, &model)?;
    let embedder = open(args, &model)?;
    // The next picture is decoded while a session runs one.
    let readers = 2 * embedder.sessions();
    let mut embedder = embedder.with_readers(readers);
    // Rust's own stdout looks for the ends of lines.
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    match stream::embed(io::stdin(), output, args.images.image_column.as_deref(), &header, &mut embedder) {
        Ok(summary) => report(&summary),
        // Its reader has all that it wanted.
        Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "for the user of the command; stdout has the answers")]
fn report(Summary { rows, failed, took, busy }: &Summary) {
    let (seconds, percent) = (took.as_secs_f64(), 100.0 * busy);
    eprintln!("answered {rows} rows, {failed} of them with an error, in {seconds:.1} s, of which the sessions were busy {percent:.1} %");
}
