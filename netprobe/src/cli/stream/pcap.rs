//! `drops --pcap FILE`: the packets beside the table, in a file of their own.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Result;

use super::super::output::Output;
use crate::{
    render::{format::Format, pcapng},
    report::{Layout, Row, Summary},
};

/// Writes packets to a file, and everything else as another format does.
pub(super) struct Pcap {
    shown: Box<dyn Format>,
    layout: Layout,
    file: Output,
}

impl Pcap {
    pub(super) fn create(path: &Path, layout: Layout, shown: Box<dyn Format>) -> Result<Self> {
        let mut file = Output::open(Some(path))?;
        pcapng::begin(&mut file)?;
        file.flush()?;
        Ok(Self {
            shown,
            layout,
            file,
        })
    }
}

impl Format for Pcap {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.shown.begin(out)
    }

    fn shows(&self, row: &Row) -> bool {
        self.shown.shows(row)
    }

    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        pcapng::packet(&mut self.file, self.layout, row)?;
        self.shown.row(out, row)
    }

    fn idle(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.file.flush()?;
        self.shown.idle(out)
    }

    fn end(&mut self, out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
        self.file.flush()?;
        self.shown.end(out, summary)
    }
}
