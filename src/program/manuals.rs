//! What packages of the programs ship beside them, made from their flags: shell completions and manual pages.
//!
//! ```
//! use dino_program::manuals::Manual;
//!
//! let out = std::env::temp_dir().join(format!("dino-manuals-{}", std::process::id()));
//! Manual::Pages { out: out.clone() }.write(clap::Command::new("example").about("Does something"))?;
//! assert!(std::fs::read_to_string(out.join("example.1"))?.contains("Does something"));
//! std::fs::remove_dir_all(out)?;
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Command, Subcommand};
use clap_complete::Shell;

/// The commit that a program was built from, where `DINO_COMMIT` told the build.
pub const COMMIT: Option<&str> = option_env!("DINO_COMMIT");

/// The verb of both programs that writes them.
#[derive(Clone, Debug, Subcommand)]
pub enum Manual {
    /// Print the completions for a shell, as `… manual completions bash > /etc/bash_completion.d/dino-server`.
    Completions {
        /// Shell that is to complete.
        shell: Shell,
    },
    /// Write a manual page for the program and one for each of its verbs.
    Pages {
        /// Folder that they are written to, `man1` of a manual path.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

impl Manual {
    /// Writes what is asked for; `program` is the whole command line.
    ///
    /// # Errors
    /// When standard output or a file cannot be written.
    pub fn write(&self, mut program: Command) -> io::Result<()> {
        match self {
            Self::Completions { shell } => {
                let mut script = Vec::new();
                let name = program.get_name().to_owned();
                clap_complete::generate(*shell, &mut program, name, &mut script);
                io::stdout().write_all(&script)
            }
            Self::Pages { out } => pages(program, out),
        }
    }
}

fn pages(program: Command, out: &Path) -> io::Result<()> {
    fs_err::create_dir_all(out)?;
    clap_mangen::generate_to(program, out)
}

/// What `--version` prints: the version of the packages, and the commit where it is known.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    COMMIT.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
});
