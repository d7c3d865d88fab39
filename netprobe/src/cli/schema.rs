//! `netprobe schema`: JSON Schema of everything that `--json` writes line by line.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;

use super::{open, output::print, stream};
use crate::{probes::PROBES, render::schema};

/// Writes the schema, from the columns that the streams themselves use.
pub(super) fn run() -> Result<ExitCode> {
    let probes = PROBES.iter().map(|spec| stream::layout(spec));
    let layouts: Vec<_> = probes.chain([open::LAYOUT]).collect();
    let names = PROBES.iter().map(|spec| spec.name());
    let names: Vec<&str> = names.chain([open::LAYOUT.kind]).collect();
    let schema = schema::of_lines(&layouts, &names);
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, &schema).map_err(io::Error::from)?;
        writeln!(out)?;
        Ok(ExitCode::SUCCESS)
    })
}
