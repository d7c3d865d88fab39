//! `netprobe generate`: man pages and shell completions, from the command line definition.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, Command, Subcommand, builder::PossibleValue};
use clap_mangen::Man;

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
            let mut definition = super::definition().disable_help_subcommand(true);
            definition.build();
            man(&definition, folder)
                .with_context(|| format!("write man pages to {}", folder.display()))?;
        }
        What::Completions { shell } => {
            let shell = match shell {
                Shell::Bash => clap_complete::Shell::Bash,
                Shell::Zsh => clap_complete::Shell::Zsh,
                Shell::Fish => clap_complete::Shell::Fish,
            };
            let script = completions(shell);
            io::stdout().write_all(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The completions of a shell.
pub(super) fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut definition = super::definition();
    clap_complete::generate(shell, &mut definition, "netprobe", &mut script);
    if shell == clap_complete::Shell::Fish {
        script.extend(fish_positionals(&definition).into_bytes());
    }
    script
}

/// The words that follow a command, which clap_complete leaves out for fish.
fn fish_positionals(definition: &Command) -> String {
    let mut lines = String::new();
    for command in definition.get_subcommands() {
        for positional in command.get_positionals() {
            let words = positional.get_possible_values();
            let words: Vec<&str> = words.iter().map(PossibleValue::get_name).collect();
            if !words.is_empty() {
                let line = [
                    "complete -c netprobe -n \"__fish_seen_subcommand_from ",
                    command.get_name(),
                    "\" -f -a \"",
                    &words.join(" "),
                    "\"\n",
                ];
                lines.extend(line);
            }
        }
    }
    lines
}

/// Writes the page of a command, and of those below it.
fn man(command: &Command, folder: &Path) -> io::Result<()> {
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        man(below, folder)?;
    }
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(folder.join(page.get_filename()), with_lines(&text))
}

/// The page with the lines of its last section, which has tables and examples, as they are.
fn with_lines(page: &[u8]) -> String {
    let mut kept = String::new();
    let mut is_extra = false;
    for line in String::from_utf8_lossy(page).lines() {
        if line.starts_with(".SH") {
            if is_extra {
                kept.push_str(".fi\n");
            }
            is_extra = line == ".SH EXTRA";
            kept.push_str(if is_extra { ".SH MORE\n.nf" } else { line });
        } else {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_examples_keep_their_lines() {
        let page = b".SH OPTIONS\nx\n.SH EXTRA\nColumns:\n  a  b\n.SH VERSION\nv1\n";
        assert_eq!(
            with_lines(page),
            ".SH OPTIONS\nx\n.SH MORE\n.nf\nColumns:\n  a  b\n.fi\n.SH VERSION\nv1\n"
        );
    }

    #[test]
    fn the_page_of_a_stream_says_what_its_columns_mean() {
        let folder = tempfile::tempdir().unwrap();
        let mut definition = super::super::definition().disable_help_subcommand(true);
        definition.build();
        man(&definition, folder.path()).unwrap();
        let page = fs::read_to_string(folder.path().join("netprobe-retransmits.1")).unwrap();
        assert!(page.contains("TRY         attempt "), "{page}");
    }
}
