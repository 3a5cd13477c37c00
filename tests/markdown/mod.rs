//! What tests need to know of Markdown: blocks of code, links, headings.

#![allow(dead_code, reason = "each test program uses some of it")]

use std::path::PathBuf;

/// A fenced block of code.
pub(crate) struct Block {
    /// What stands behind the first fence, such as `sh`.
    pub(crate) language: String,
    /// Its lines.
    pub(crate) code: String,
}

/// The documents for people, below `root`.
pub(crate) fn documents(root: &std::path::Path) -> Vec<PathBuf> {
    let folders = ["", "docs", "docker", "models", "tests", "tests/data", "tests/photos", "examples"];
    let files = folders.into_iter().filter_map(|folder| fs_err::read_dir(root.join(folder)).ok()).flatten();
    let mut files: Vec<_> =
        files.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect();
    files.sort();
    files
}

/// The fenced blocks of a document, in their order.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let code: Vec<_> = lines.by_ref().take_while(|line| line.trim_start() != "```").collect();
            found.push(Block { language: language.to_owned(), code: code.join("\n") + "\n" });
        }
    }
    found
}

/// The document without its blocks of code.
pub(crate) fn prose(text: &str) -> String {
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Spans of code between single backticks.
pub(crate) fn spans(prose: &str) -> Vec<&str> {
    prose.split('`').skip(1).step_by(2).collect()
}

/// Targets of links and pictures, `[text](target)` and `[name]: target`.
pub(crate) fn links(prose: &str) -> Vec<&str> {
    let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let named = prose.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split("]: ").nth(1));
    inline.chain(named).collect()
}

/// Anchors of the headings, as GitHub makes them.
pub(crate) fn anchors(prose: &str) -> Vec<String> {
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let letters = |heading: &str| -> String {
        let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
        kept.flat_map(char::to_lowercase).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
    };
    headings.map(letters).collect()
}

/// Command lines of `program` in a document, with lines that a backslash continues joined: those of blocks, and those of spans that
/// start with its name.
pub(crate) fn commands(text: &str, program: &str) -> Vec<String> {
    let code = blocks(text).into_iter().map(|block| block.code.replace("\\\n", " ")).collect::<String>();
    let prose = prose(text);
    let lines = code.lines().map(str::to_owned).chain(spans(&prose).into_iter().map(|span| span.replace('\n', " ")));
    let named = |line: &str| {
        let start = line.split_whitespace().position(|word| word.rsplit('/').next() == Some(program))?;
        let words = line.split_whitespace().skip(start + 1).take_while(|word| !matches!(*word, "|" | "&&" | ";" | "#" | "\\"));
        Some(words.collect::<Vec<_>>().join(" "))
    };
    lines.filter_map(|line| named(&line)).filter(|command| !command.is_empty()).collect()
}

/// Faults of `commands`: a command or a flag that the help of the program does not name. `help` gives that of a command, or nothing.
pub(crate) fn unknown(commands: &[String], mut help: impl FnMut(&str) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for command in commands {
        let Some((verb, rest)) = command.split_once(' ') else { continue };
        if !verb.starts_with(|letter: char| letter.is_ascii_lowercase())
            || !verb.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-')
        {
            continue;
        }
        // Several commands at once, as in `serve|import --model`, are no command line.
        let Some(help) = help(verb) else {
            faults.push(format!("there is no command {verb}: {command}"));
            continue;
        };
        let named: Vec<&str> =
            help.split(|letter: char| letter.is_whitespace() || matches!(letter, ',' | '|' | '<' | '>' | '[' | ']' | '(' | ')')).collect();
        let flags = rest.split([' ', '=', '[', ']', '|', '…']).filter(|word| word.starts_with("--") && word.len() > 2);
        faults.extend(flags.filter(|flag| !named.contains(flag)).map(|flag| format!("{verb} has no flag {flag}: {command}")));
    }
    faults
}
