//! What packages ship beside the program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn dino_server(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_dino-server")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn completions_know_every_verb_and_flag() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(dino_server(&["manual", "completions", shell]).stdout).unwrap();
        for word in ["serve", "reembed", "data-dir", "max-pixels"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
}

#[test]
fn bash_can_load_its_completions() {
    let script = dino_server(&["manual", "completions", "bash"]).stdout;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dino-server");
    std::fs::write(&path, script).unwrap();
    let ask =
        "source \"$0\"; COMP_WORDS=(dino-server ser); COMP_CWORD=1; _dino__server dino-server ser dino-server; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").arg("-c").arg(ask).arg(&path).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "serve", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn there_is_a_page_for_each_verb() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    dino_server(&["manual", "pages", "--out", out.to_str().unwrap()]);
    let help = String::from_utf8(dino_server(&["help"]).stdout).unwrap();
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = verbs.filter(|line| !line.starts_with("   ")).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(verbs.contains(&"serve") && verbs.len() > 6, "{verbs:?}");
    for verb in verbs.into_iter().filter(|verb| *verb != "help") {
        let page = std::fs::read_to_string(out.join(format!("dino-server-{verb}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains(".SH OPTIONS"), "{verb}");
    }
    assert!(std::fs::read_to_string(out.join("dino-server-serve.1")).unwrap().contains("max\\-pixels"));
}
