//! How much room the kernel keeps for stacks, and for copies of them on their way.

use std::time::Duration;

use super::graph::Source;
use crate::kernel::sampler;

/// Room for distinct stacks, at least and at most.
const LEAST_STACKS: u32 = 2048;
const MOST_STACKS: u32 = 16_384;
/// Bytes of the counts of stacks.
pub(super) const MOST_COUNTS: usize = 16 << 20;
/// Bytes of the ring for copied stacks, at least and at most.
const LEAST_RING: u32 = 4 << 20;
const MOST_RING: u32 = 16 << 20;
/// Bytes of user stacks that a CPU copies per second at most, which is more than 99 of the largest; the others are
/// followed by frame pointers.
const COPIED_PER_CPU: u64 = 4 << 20;
/// So many in any case, shared between the CPUs.
const COPIED_PER_SECOND: u64 = 16 << 20;

/// Stacks that can be seen, as far as maps have to keep room for them: the kernel takes the room
/// at once, which is most of what it costs to start. Blocks have no bound but the maps'.
pub(super) fn stacks(source: Source, duration: Duration) -> u32 {
    let most = match source {
        Source::Samples { hertz } => {
            let seconds = duration.as_secs().saturating_add(1);
            hertz
                .saturating_mul(seconds)
                .saturating_mul(u64::from(sampler::online()))
        }
        Source::Blocks { .. } => u64::from(MOST_STACKS),
    };
    // Tables of hashes are best when they are not full.
    let most = u32::try_from(most.saturating_mul(2)).unwrap_or(MOST_STACKS);
    most.clamp(LEAST_STACKS, MOST_STACKS).next_power_of_two()
}

/// Bytes that all CPUs together may copy per second.
fn copied_per_second() -> u64 {
    COPIED_PER_SECOND.max(COPIED_PER_CPU * u64::from(sampler::online()))
}

/// What a copied KiB costs the budget of a CPU.
pub(super) fn copy_ns_per_kib() -> u32 {
    let cpus = u64::from(sampler::online());
    u32::try_from(cpus * 1_000_000_000 / (copied_per_second() >> 10)).unwrap_or(u32::MAX)
}

/// Bytes of the ring for copied stacks: what is copied in a quarter of a second.
pub(super) fn copy_ring_bytes() -> u32 {
    let quarter = u32::try_from(copied_per_second() / 4).unwrap_or(MOST_RING);
    quarter.clamp(LEAST_RING, MOST_RING).next_power_of_two()
}
