//! The events of a window, decoded as they come: a sample, as totals are exact without them.

use crate::{
    capture::live::Batch, decode, diagnose::events::Events, kernel::names::LiveNames, probes,
    report::Row,
};

/// Records that are decoded in one go; beyond that a sample is enough.
const DECODED: usize = 1024;

/// Turns records into a sample of events.
pub(super) struct Reader {
    /// What numbers of the records mean.
    pub(super) names: LiveNames,
    /// The sample.
    pub(super) events: Events,
    row: Row,
    /// Records that could not be read.
    pub(super) decode_errors: u64,
    skipped: u64,
}

impl Reader {
    /// Nothing was read yet.
    pub(super) fn new(names: LiveNames) -> Self {
        Self {
            names,
            events: Events::default(),
            row: Row::default(),
            decode_errors: 0,
            skipped: 0,
        }
    }

    /// Takes what came; beyond a number that is enough, only how much it was.
    pub(super) fn take(&mut self, batch: &Batch) {
        for (index, record) in batch.records().enumerate() {
            if index >= DECODED {
                self.skipped += 1;
                continue;
            }
            let decoded = decode::kind(record).and_then(|kind| {
                decode::decode(record, &mut self.names, &mut self.row).map(|()| kind)
            });
            match decoded {
                Ok(kind) => self.events.add(probes::of(kind).columns, &self.row),
                Err(error) => {
                    self.decode_errors += 1;
                    log::debug!("{error}");
                }
            }
        }
    }
}
