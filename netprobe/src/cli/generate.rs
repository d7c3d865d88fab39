//! `netprobe generate`: man pages and shell completions, from the command line definition.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::Shell;

/// What to generate.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Man pages, one per command, into a folder.
    Man {
        /// An existing folder.
        folder: PathBuf,
    },
    /// Completions for a shell, to stdout.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Writes them.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    match &options.what {
        What::Man { folder } => {
            clap_mangen::generate_to(super::definition(), folder)
                .with_context(|| format!("write man pages to {}", folder.display()))?;
        }
        What::Completions { shell } => {
            let mut script = Vec::new();
            let mut definition = super::definition();
            let shell = match shell {
                Shell::Bash => clap_complete::Shell::Bash,
                Shell::Zsh => clap_complete::Shell::Zsh,
                Shell::Fish => clap_complete::Shell::Fish,
            };
            clap_complete::generate(shell, &mut definition, "netprobe", &mut script);
            io::stdout().write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
