//! From records to the output: decoded, filtered, written in a format.

use std::io::Write;

use anyhow::Result;

use super::{
    super::{Global, output::Output},
    account, end_line,
    pcap::Pcap,
};
use crate::{
    aggregate::connects::{self, Connects},
    capture::live::{Batch, LiveRing},
    decode,
    filter::matcher::Matcher,
    kernel::names::LiveNames,
    probes::ProbeSpec,
    render::{self, format::Format},
    report::{ConnectView, Probe, Row, Summary, Total},
};

/// Where events go, and what became of them on the way.
pub(super) struct Screen {
    pub(super) names: LiveNames,
    /// Events that could not be decoded.
    pub(super) decode_errors: u64,
    /// Events that the filter or the format did not want.
    pub(super) filtered: u64,
    row: Row,
    connects: Option<Connects>,
    matcher: Option<Matcher>,
    format: Box<dyn Format>,
    out: Output,
    packets: Option<Pcap>,
}

impl Screen {
    pub(super) fn new(
        spec: &ProbeSpec,
        names: LiveNames,
        matcher: Matcher,
        format: Box<dyn Format>,
        out: Output,
    ) -> Self {
        Self {
            names,
            decode_errors: 0,
            filtered: 0,
            row: Row::default(),
            connects: Connects::new(spec.columns),
            matcher: Some(matcher).filter(|matcher| !matcher.is_empty()),
            format,
            out,
            packets: None,
        }
    }

    /// Writes packets too, to a file of their own.
    pub(super) fn with_packets(mut self, packets: Option<Pcap>) -> Self {
        self.packets = packets;
        self
    }

    /// Events that have reached the output, whole.
    pub(super) const fn written(&self) -> u64 {
        self.out.records()
    }

    /// Whether all that the kernel side sends is wanted.
    pub(super) const fn wants_all(&self) -> bool {
        self.matcher.is_none()
    }

    /// Writes what comes before the first event.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.format.begin(&mut self.out)?;
        Ok(self.out.flush()?)
    }

    /// Writes the events that are wanted.
    pub(super) fn show(&mut self, batch: &Batch) -> Result<()> {
        if batch.is_empty() {
            self.names.refresh_clock();
            self.format.idle(&mut self.out)?;
        }
        for record in batch.records() {
            if let Err(error) = decode::decode(record, &mut self.names, &mut self.row) {
                self.decode_errors += 1;
                log::debug!("{error}");
                continue;
            }
            let matcher = self.matcher.as_ref();
            if matcher.is_some_and(|matcher| !matcher.admits(&self.row)) {
                self.filtered += 1;
                continue;
            }
            if let Some(connects) = &mut self.connects {
                connects.add(&self.row);
            }
            let is_shown = self.format.shows(&self.row);
            self.filtered += u64::from(!is_shown);
            self.format.row(&mut self.out, &self.row)?;
            if is_shown {
                self.out.end_record();
            }
            if let Some(packets) = &mut self.packets {
                packets.row(&self.row)?;
                if packets.is_filling() || self.out.is_filling() {
                    self.settle()?;
                }
            }
        }
        // Whoever reads along wants whole lines, and soon; the ring makes us wait long enough.
        self.settle()
    }

    /// Writes what waits: packets, then the rows of those that are there.
    fn settle(&mut self) -> Result<()> {
        let packets = self.packets.as_mut();
        let are_there = packets.map_or(Ok(()), |packets| packets.settle(&mut self.out));
        self.out.flush()?;
        Ok(are_there?)
    }

    /// Shows what was still in the ring when the programs were detached.
    pub(super) fn drain(&mut self, ring: &mut LiveRing) -> Result<()> {
        loop {
            let batch = ring.drain();
            if batch.is_empty() {
                return Ok(());
            }
            self.show(&batch)?;
        }
    }

    /// What the connects add up to, if these are connects and there were any.
    ///
    /// Of `probe`, and of `counted` if the kernel counts exactly those that are wanted.
    pub(super) fn connects(&self, probe: &Probe, counted: Option<&[Total]>) -> Option<ConnectView> {
        let mut view = self.connects.as_ref()?.finish();
        if let Some(totals) = counted {
            connects::count_all(&mut view, totals);
        }
        let all_were_shown = probe.lost() + probe.counters.sampled_out == 0;
        view.are_all |= all_were_shown;
        (view.shown > 0 || view.established > 0 || !view.failed.is_empty()).then_some(view)
    }

    /// Writes what comes after the last event.
    pub(super) fn end(&mut self, summary: &Summary) -> Result<()> {
        if let Some(packets) = &mut self.packets {
            packets.end(summary)?;
        }
        self.format.end(&mut self.out, summary)?;
        Ok(self.out.flush()?)
    }

    /// Writes the accounting to standard error.
    pub(super) fn account(&self, summary: &Summary, global: &Global) {
        end_line(&self.out, global);
        // Nobody is left to tell when the terminal is gone.
        if let Some(view) = summary.connects.as_ref().filter(|_| !global.quiet) {
            let _closed = render::connects::write(&mut anstream::stderr(), view);
        }
        account(summary, global);
    }
}
