//! Serves the repositories of a folder, `OWNER/NAME` below it, until its input ends. The first line of its output is its address.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program: its output says where it listens")]

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use loopback_hub::{LoopbackHub, Repository};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), port) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: loopback-hub FOLDER [PORT]");
        return ExitCode::from(2);
    };
    let hub = LoopbackHub::listen(port.and_then(|port| port.parse().ok()).unwrap_or(0));
    for owner in folders(Path::new(&root)) {
        for name in folders(&owner) {
            let id = name.strip_prefix(&root).expect("it lies below").display().to_string();
            hub.put(&id, Repository::of_folder(&name));
        }
    }
    println!("{}", hub.endpoint());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

fn folders(parent: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs_err::read_dir(parent).expect("the folder can be read");
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}
