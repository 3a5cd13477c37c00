//! The hub as a program, for trying names of models by hand.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_loopback-hub"))
}

#[test]
fn it_serves_a_folder_until_it_is_stopped() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("repositories");
    fs_err::create_dir_all(root.join("meta/tiny")).unwrap();
    fs_err::write(root.join("meta/tiny/config.json"), "{}").unwrap();
    // Without an input, as in the background of a script.
    let mut hub = program().arg(&root).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut address = String::new();
    BufReader::new(hub.stdout.take().unwrap()).read_line(&mut address).unwrap();
    assert!(address.starts_with("http://127.0.0.1:"), "{address}");
    assert!(hub.try_wait().unwrap().is_none(), "it ended by itself");
    hub.kill().unwrap();
    hub.wait().unwrap();
}

#[test]
fn wrong_usage_ends_with_two() {
    for (arguments, wanted) in
        [(&["/no/such/folder"][..], "/no/such/folder"), (&[][..], "usage: loopback-hub"), (&[".", "x"][..], "no number")]
    {
        let output = program().args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{said}");
    }
}
