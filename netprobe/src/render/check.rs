//! What works on this machine, for eyes.

use std::io::{self, Write};

use crate::report::{Limit, Probe};

/// Writes every probe with its hooks, how each is watched, or why it is not; and what else is not seen.
pub fn write(
    out: &mut dyn Write,
    kernel: &str,
    probes: &[Probe],
    limits: &[Limit],
) -> io::Result<()> {
    writeln!(out, "kernel {kernel}")?;
    for probe in probes {
        writeln!(
            out,
            "\n{:<12} {:<9} {}",
            probe.name,
            probe.state(),
            probe.about
        )?;
        for hook in &probe.hooks {
            match &hook.state {
                Ok(via) => writeln!(out, "  yes  {:<52} {via}", hook.sees)?,
                Err(why) => writeln!(out, "  NO   {:<52} {why}", hook.sees)?,
            }
        }
    }
    if !limits.is_empty() {
        writeln!(out, "\nof all of them")?;
    }
    for Limit { what, why } in limits {
        writeln!(out, "  NO   {what:<52} {why}")?;
    }
    Ok(())
}
