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

use super::{Shell, output::print, reference};

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
        /// The folder, which is made if it is not there.
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
            fs::create_dir_all(folder)
                .and_then(|()| man(&definition, folder))
                .with_context(|| format!("write man pages to {}", folder.display()))?;
        }
        What::Completions { shell } => {
            let shell = match shell {
                Shell::Bash => clap_complete::Shell::Bash,
                Shell::Zsh => clap_complete::Shell::Zsh,
                Shell::Fish => clap_complete::Shell::Fish,
            };
            let script = completions(shell);
            print(|out| Ok(out.write_all(&script)?))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The completions of a shell.
pub(super) fn completions(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut definition = reference::shown(&super::definition());
    clap_complete::generate(shell, &mut definition, "netprobe", &mut script);
    if shell == clap_complete::Shell::Bash {
        script = bash_lists(&String::from_utf8_lossy(&script)).into_bytes();
    }
    if shell == clap_complete::Shell::Fish {
        script.extend(fish_positionals(&definition).into_bytes());
    }
    script
}

/// The script with values of lists completed after each comma.
fn bash_lists(script: &str) -> String {
    let lists = ["--columns)", "--by)"];
    let mut text = String::new();
    let mut is_list = false;
    for line in script.lines() {
        let end = "-- \"${cur}\"))";
        match line.strip_suffix(end).filter(|_| is_list) {
            Some(begin) => {
                let begin = begin.replace("compgen -W", "compgen -P \"${cur%\"${cur##*,}\"}\" -W");
                text.push_str(&begin);
                text.push_str("-- \"${cur##*,}\"))");
            }
            None => text.push_str(line),
        }
        text.push('\n');
        is_list = lists.contains(&line.trim());
    }
    text
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
    let text = with_values(&with_lines(&text), command);
    fs::write(folder.join(page.get_filename()), text)
}

/// The page with the values of options in its synopsis.
fn with_values(page: &str, command: &Command) -> String {
    let Some((before, rest)) = page.split_once(".SH SYNOPSIS\n") else {
        return page.to_owned();
    };
    let (synopsis, after) = rest.split_once('\n').unwrap_or((rest, ""));
    let mut synopsis = synopsis.to_owned();
    for option in command.get_opts() {
        let long = option.get_long().unwrap_or_default().replace('-', "\\-");
        let names = option.get_value_names().unwrap_or_default();
        if let Some(name) = names.first() {
            let bare = format!("\\fB\\-\\-{long}\\fR]");
            let name = name.replace('-', "\\-");
            let whole = format!("\\fB\\-\\-{long}\\fR \\fI{name}\\fR]");
            synopsis = synopsis.replace(&bare, &whole);
        }
    }
    format!("{before}.SH SYNOPSIS\n{synopsis}\n{after}")
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
        let value = r"[\fB\-d\fR|\fB\-\-duration\fR \fIDURATION\fR]";
        assert!(page.contains(value), "{page}");
        let value = r"[\fB\-\-max\-overhead\fR \fIPERCENT\fR]";
        assert!(page.contains(value), "{page}");
    }
}
