//! `netprobe explain`: what a finding means. Needs no root.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::output::print;
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
    let Some(id) = &options.id else {
        return print(|out| {
            for rule in RULES {
                writeln!(out, "{:<26} {}", rule.id, rule.title)?;
            }
            Ok(ExitCode::SUCCESS)
        });
    };
    let Some(rule) = rule(id) else {
        return Err(Error::elsewhere(format!(
            "no finding is called `{id}`; `netprobe explain` lists them"
        ))
        .into());
    };
    print(|out| {
        let width = out.width();
        Ok(render::explanation::write(out, &rule.explained(), width)?)
    })?;
    Ok(ExitCode::SUCCESS)
}
