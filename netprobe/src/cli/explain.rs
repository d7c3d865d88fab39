//! `netprobe explain`: what a finding means. Needs no root.

use std::{io, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{
    diagnose::{RULES, rule},
    filter::Error,
    render,
};

/// Options of `explain`.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// The finding's id, as `diagnose` shows it; without one, all ids.
    #[arg(value_name = "FINDING")]
    id: Option<String>,
}

/// Explains one finding, or lists them all.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let Some(id) = &options.id else {
        for rule in RULES {
            io::Write::write_fmt(&mut out, format_args!("{:<26} {}\n", rule.id, rule.title))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(rule) = rule(id) else {
        return Err(Error::elsewhere(format!(
            "no finding is called `{id}`; `netprobe explain` lists them"
        ))
        .into());
    };
    render::explanation::write(&mut out, &rule.explained())?;
    Ok(ExitCode::SUCCESS)
}
