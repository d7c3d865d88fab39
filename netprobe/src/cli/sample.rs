//! The events of a window, decoded as they come: a sample, as totals are exact without them.

use netprobe_common::header::Kind;

use crate::{
    capture::live::Batch,
    decode::{self, DecodeError},
    diagnose::events::Events,
    kernel::names::LiveNames,
    probes,
    report::Row,
};

/// Records of a kind that are decoded in one go: a sample is enough, and where there are many of one kind the few of
/// another are what matters.
const DECODED: usize = 128;

/// Turns records into a sample of events.
pub(super) struct Reader {
    /// What numbers of the records mean.
    pub(super) names: LiveNames,
    /// The sample.
    pub(super) events: Events,
    row: Row,
    /// Records that could not be read.
    pub(super) decode_errors: u64,
}

impl Reader {
    /// Nothing was read yet.
    pub(super) fn new(names: LiveNames) -> Self {
        Self {
            names,
            events: Events::default(),
            row: Row::default(),
            decode_errors: 0,
        }
    }

    /// Takes what came: of each kind no more than is enough.
    pub(super) fn take(&mut self, batch: &Batch) {
        let mut taken = [0; Kind::ALL.len()];
        for record in batch.records() {
            if let Err(error) = self.take_one(record, &mut taken) {
                self.decode_errors += 1;
                log::debug!("{error}");
            }
        }
    }

    fn take_one(
        &mut self,
        record: &[u8],
        taken: &mut [usize; Kind::ALL.len()],
    ) -> Result<(), DecodeError> {
        let kind = decode::kind(record)?;
        let taken = &mut taken[kind as usize];
        if *taken < DECODED {
            *taken += 1;
            decode::decode(record, &mut self.names, &mut self.row)?;
            self.events.add(probes::of(kind).columns, &self.row);
        }
        Ok(())
    }
}
