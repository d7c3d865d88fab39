//! What was wrong with the command line, in one line, as everything else that is wrong.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anstream::{AutoStream, ColorChoice};
use anyhow::Result;
use clap::error::ErrorKind;

use super::output::print;

/// Says it, or shows the help that was asked for; and how the program ends.
pub(super) fn conclude(error: &clap::Error) -> ExitCode {
    let code = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match show(error) {
            Ok(()) => code,
            Err(error) => super::conclude(&error),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nobody is left to tell when stderr is closed.
            let _closed = error.print();
            code
        }
        _ => {
            log::error!("{}", complaint(&error.to_string()));
            code
        }
    }
}

/// Shows what was asked for: clap itself would not say that a disk is full.
fn show(help: &clap::Error) -> Result<()> {
    let text = help.render();
    let text = match AutoStream::choice(&io::stdout()) {
        ColorChoice::Never => text.to_string(),
        _ => text.ansi().to_string(),
    };
    print(|out| Ok(out.write_all(text.as_bytes())?))
}

/// The paragraphs of clap as one line.
fn complaint(text: &str) -> String {
    let mut line = String::new();
    let mut help = "--help".to_owned();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if let Some(usage) = part.strip_prefix("Usage: ") {
            let is_word = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
            let words: Vec<&str> = usage.split(' ').take_while(is_word).collect();
            help = format!("{} --help", words.join(" "));
            continue;
        }
        if part.starts_with("For more information") {
            continue;
        }
        let part = part.strip_prefix("error: ").unwrap_or(part);
        let part = part.strip_prefix("tip: ").unwrap_or(part);
        line.push_str(match line.chars().last() {
            None => "",
            Some(':') => " ",
            Some(_) if part.starts_with('[') => " ",
            Some(_) => "; ",
        });
        line.push_str(part);
    }
    format!("{line} (see `{help}`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_a_line() {
        let text = "error: unrecognized subcommand 'drosp'\n\n  tip: a similar subcommand exists: 'drops'\n\nUsage: \
                    netprobe [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            complaint(text),
            "unrecognized subcommand 'drosp'; a similar subcommand exists: 'drops' (see `netprobe --help`)"
        );
        let text = "error: the following required arguments were not provided:\n  <ID>\n\nUsage: netprobe explain <ID>\n";
        assert_eq!(
            complaint(text),
            "the following required arguments were not provided: <ID> (see `netprobe explain --help`)"
        );
        let text = "error: invalid value 'x' for '--color <WHEN>'\n  [possible values: auto, never]\n\nFor more \
                    information, try '--help'.\n";
        assert_eq!(
            complaint(text),
            "invalid value 'x' for '--color <WHEN>' [possible values: auto, never] (see `--help`)"
        );
    }
}
