//! `netprobe flame diff`: what has changed between two profiles.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;

use super::draw::{Look, must_be_readable};
use crate::{
    cli::later::Later,
    render::{flamegraph, folded, pprof},
    report::{Folded, Palette},
};

/// Options of `diff`.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// The first profile: folded stacks or pprof.
    before: PathBuf,
    /// The second; its widths are drawn. Red has grown, blue has shrunk.
    after: PathBuf,
    /// Scale the first to the sum of the second, as for windows of different lengths.
    #[arg(short, long)]
    normalize: bool,
    /// File to write; `-` is stdout.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Folded stacks with two weights instead of SVG.
    #[arg(long)]
    folded: bool,
    #[command(flatten)]
    look: Look,
}

/// Draws the difference.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if !options.folded {
        must_be_readable(&options.output, "a picture")?;
    }
    let (before, after) = (read(&options.before)?, read(&options.after)?);
    let (total_before, total_after) = (total(&before), total(&after));
    let scale = |weight: u64| {
        if options.normalize && total_before > 0 {
            u128::from(weight) * u128::from(total_after) / u128::from(total_before)
        } else {
            u128::from(weight)
        }
    };
    let mut weights: BTreeMap<String, (u128, u64)> = BTreeMap::new();
    for stack in &before {
        weights.entry(names(stack)).or_default().0 += scale(stack.weight);
    }
    for stack in &after {
        weights.entry(names(stack)).or_default().1 += stack.weight;
    }
    let lines: Vec<String> = weights
        .iter()
        .map(|(names, (before, after))| format!("{names} {before} {after}"))
        .collect();
    let out = Later::open(options.output.clone())?;
    let subtitle = format!(
        "{} ({total_before}) to {} ({total_after}){}; red has grown, blue has shrunk",
        name(&options.before),
        name(&options.after),
        if options.normalize {
            ", normalized"
        } else {
            ""
        }
    );
    out.write(|mut out| {
        if options.folded {
            let written = lines.iter().try_for_each(|line| writeln!(out, "{line}"));
            return Ok(written?);
        }
        let title = options.look.title("Differential Flame Graph");
        let style = options.look.style(Palette::Hot);
        flamegraph::write_difference(&mut out, &title, &subtitle, &lines, style)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn total(stacks: &[Folded]) -> u64 {
    let weights = stacks.iter().map(|stack| stack.weight);
    weights.fold(0, u64::saturating_add)
}

/// The frames of a stack as folded text has them.
fn names(stack: &Folded) -> String {
    let line = folded::line(stack);
    line.rsplit_once(' ')
        .map_or_else(String::new, |(names, _)| names.to_owned())
}

fn read(path: &Path) -> Result<Vec<Folded>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let stacks = if pprof::is_packed(&bytes) {
        pprof::read(&bytes)
    } else {
        String::from_utf8(bytes)
            .context("neither folded text nor a compressed pprof profile")
            .and_then(|text| folded::read(&text))
    };
    stacks.with_context(|| format!("read {}", path.display()))
}
