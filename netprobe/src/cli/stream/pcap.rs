//! `drops --pcap FILE`: the packets beside the table, in a file of their own.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Result;

use super::super::output::Output;
use crate::{
    observe::clock::unix_ns,
    render::pcapng,
    report::{Layout, Probe, Row, Summary},
};

/// Writes packets to a file. An event is shown once its packet is there.
pub(in super::super) struct Pcap {
    layout: Layout,
    file: Output,
}

impl Pcap {
    pub(super) fn create(path: &Path, layout: Layout) -> Result<Self> {
        let mut file = Output::open(Some(path))?;
        pcapng::begin(&mut file)?;
        file.flush()?;
        Ok(Self { layout, file })
    }

    /// The packet of an event, which may have none.
    pub(super) fn row(&mut self, row: &Row) -> io::Result<()> {
        pcapng::packet(&mut self.file, self.layout, row)?;
        self.file.end_record();
        Ok(())
    }

    /// Writes what comes after the last packet.
    pub(super) fn end(&mut self, summary: &Summary) -> io::Result<()> {
        let shown = summary.probes.iter().map(Probe::shown).sum();
        pcapng::end(&mut self.file, unix_ns(), shown, summary.not_shown())?;
        self.file.flush()
    }

    /// Whether so much waits that it is to be written.
    pub(super) fn is_filling(&self) -> bool {
        self.file.is_filling()
    }

    /// Writes what waits before the rows that wait in `out` are; if the disk is full, rows whose packet is not there are
    /// taken back.
    pub(super) fn settle(&mut self, out: &mut Output) -> io::Result<()> {
        let settled = self.file.flush();
        if settled.is_err() {
            out.keep(self.file.records());
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Column;

    const LAYOUT: Layout = Layout {
        kind: "drops",
        columns: &[Column::text("reason", "REASON", 9, "")],
    };

    fn row() -> Row {
        let mut packet = vec![0x45, 0, 0, 40];
        packet.resize(40, 7);
        Row {
            packet,
            ..Row::default()
        }
    }

    /// Bytes of the first packets, of which each is as long.
    fn length(packets: usize) -> u64 {
        let mut bytes = Vec::new();
        pcapng::begin(&mut bytes).unwrap();
        for _ in 0..packets {
            pcapng::packet(&mut bytes, LAYOUT, &row()).unwrap();
        }
        bytes.len() as u64
    }

    #[test]
    fn on_a_full_disk_whole_packets_stay_and_so_many_rows() {
        const FIT: usize = 100;
        let folder = tempfile::tempdir().unwrap();
        let [packets, lines] = ["x.pcapng", "lines"].map(|name| folder.path().join(name));
        let mut out = Output::open(Some(&lines)).unwrap();
        let mut pcap = Pcap::create(&packets, LAYOUT).unwrap();
        pcap.file.fill_up_at(length(FIT) + 30);
        let mut ended = Ok(());
        for number in 0..3 * FIT {
            pcap.row(&row()).unwrap();
            writeln!(out, "{number}").unwrap();
            out.end_record();
            if number % 70 == 69 {
                ended = pcap.settle(&mut out);
                let _full = out.flush();
            }
            if ended.is_err() {
                break;
            }
        }
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::StorageFull);
        drop(pcap);
        assert_eq!(packets.metadata().unwrap().len(), length(FIT));
        assert_eq!(out.records(), FIT as u64);
        drop(out);
        let lines = std::fs::read_to_string(lines).unwrap();
        assert_eq!(lines.lines().count(), FIT);
        assert_eq!(lines.lines().last(), Some("99"));
    }
}
