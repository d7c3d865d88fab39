//! The ring buffer of the running programs, drained in batches.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use bytes::{Bytes, BytesMut};
use tokio::{io::unix::AsyncFd, time::timeout};

/// Most records handed out at once, so that signals and timers get their turn, and that little memory does.
const BATCH: usize = 1024;
/// Batches that a ring holds, about; what comes while they are taken may wait.
const BATCHES: usize = 8;
/// How long records may wait in the ring when there are too few to wake us.
const LATENCY: Duration = Duration::from_millis(50);

/// The reader of the ring.
pub struct LiveRing {
    ring: AsyncFd<RingBuf<MapData>>,
}

/// Records as the kernel wrote them, back to back.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Bytes,
    ends: Vec<usize>,
}

impl Batch {
    /// The records.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins
            .zip(&self.ends)
            .map(|(begin, end)| &self.bytes[begin..*end])
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl LiveRing {
    /// Takes over the ring.
    pub fn new(ring: RingBuf<MapData>) -> Result<Self> {
        #[expect(
            deprecated,
            reason = "a ring keeps its descriptor as long as it lives, which \
                                       is all that the unsafe successor asks for"
        )]
        let ring = AsyncFd::new(ring).context("watch the ring buffer")?;
        Ok(Self { ring })
    }

    /// Waits for records, but not longer than they may wait for us; may return none.
    pub async fn next(&mut self) -> Result<Batch> {
        let batch = self.drain();
        if !batch.is_empty() {
            return Ok(batch);
        }
        if let Ok(ready) = timeout(LATENCY, self.ring.readable_mut()).await {
            ready.context("wait for the ring buffer")?.clear_ready();
        }
        Ok(self.drain())
    }

    /// Takes what is there now, in batches.
    pub fn batches(&mut self) -> impl Iterator<Item = Batch> {
        let batches = (0..BATCHES).map(|_| self.drain());
        batches.take_while(|batch| !batch.is_empty())
    }

    /// Takes what is there now, up to one batch.
    pub fn drain(&mut self) -> Batch {
        let ring = self.ring.get_mut();
        let mut bytes = BytesMut::new();
        let mut ends = Vec::new();
        while ends.len() < BATCH {
            let Some(record) = ring.next() else { break };
            bytes.extend_from_slice(&record);
            ends.push(bytes.len());
        }
        Batch {
            bytes: bytes.freeze(),
            ends,
        }
    }
}
