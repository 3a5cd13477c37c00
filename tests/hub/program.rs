//! Serves the repositories of a folder, `OWNER/NAME` below it, until it is stopped (Ctrl-C). The first line of its output is its address.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program: its output says where it listens")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use loopback_hub::{LoopbackHub, Repository};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), port) = (arguments.next(), arguments.next().map_or(Ok(0), |port| port.parse())) else {
        return usage("the folder is missing");
    };
    let Ok(port) = port else { return usage("the port is no number from 0 to 65535") };
    let models = match models(Path::new(&root)) {
        Ok(models) => models,
        Err(error) => return usage(&error.to_string()),
    };
    let hub = LoopbackHub::listen(port);
    for (id, folder) in models {
        hub.put(&id, Repository::of_folder(&folder));
    }
    println!("{}", hub.endpoint());
    loop {
        thread::park();
    }
}

fn usage(wrong: &str) -> ExitCode {
    eprintln!("error: {wrong}\nusage: loopback-hub FOLDER [PORT], where FOLDER holds OWNER/NAME/FILE");
    ExitCode::from(2)
}

/// OWNER/NAME of each repository below `root`, and its folder.
fn models(root: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut models = Vec::new();
    for owner in folders(root)? {
        for folder in folders(&owner)? {
            let id = folder.strip_prefix(root).unwrap_or(&folder).display().to_string();
            models.push((id, folder));
        }
    }
    Ok(models)
}

fn folders(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs_err::read_dir(parent)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}
