//! A flame graph as SVG, drawn by inferno.

use std::io::Write;

use anyhow::{Context, Result, bail};
use inferno::flamegraph::{
    self, Options,
    color::{BasicPalette, Palette},
};

use super::folded;
use crate::report::Flame;

/// Draws the graph.
pub fn write(out: &mut dyn Write, flame: &Flame) -> Result<()> {
    if flame.stacks.is_empty() {
        bail!("no stacks were collected, so there is nothing to draw");
    }
    let lines: Vec<String> = flame.stacks.iter().map(folded::line).collect();
    let mut options = Options::default();
    options.title.clone_from(&flame.title);
    options.subtitle = Some(flame.subtitle.clone());
    flame.unit.clone_into(&mut options.count_name);
    options.colors = Palette::Basic(BasicPalette::Hot);
    options.hash = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
        .context("draw the flame graph")
}
