//! Writes the seeds of the fuzzer: `seeds FOLDER`.

use std::{io, path::Path};

use dino_fuzz::seeds;

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("seeds FOLDER"))?;
    for (target, seeds) in [("picture", seeds::pictures()), ("request", seeds::requests()), ("checkpoint", seeds::checkpoints())] {
        let folder = Path::new(&folder).join(target);
        fs_err::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs_err::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
