//! Budgets of time on a CPU: a rate, and a burst after a calm. The account is when all that was spent is paid for.

/// What may be spent at once after a calm, as time.
const BURST_NS: u64 = 250_000_000;

/// What is kept of the burst for what matters more.
pub(crate) const RESERVE_NS: u64 = BURST_NS / 2;

/// Whether there is something to spend `now`, beyond a reserve.
#[inline(always)]
pub(crate) fn allows(due: u64, reserve_ns: u64, now: u64) -> bool {
    due + reserve_ns <= now
}

/// Spends as much as is earned in `cost_ns`.
#[inline(always)]
pub(crate) fn spend(due: &mut u64, cost_ns: u64, now: u64) {
    *due = now.saturating_sub(BURST_NS).max(*due) + cost_ns;
}
