//! What every test here stands on: that tracepoints fire.

use std::time::Duration;

use netprobe_tests::{
    skip::{is_root, skip_unless_strict},
    tracepoints::Softirqs,
};

#[test]
fn fire_wherever_the_kernel_counts() {
    if !is_root() {
        return;
    }
    let softirqs = Softirqs::of(Duration::from_secs(3));
    if softirqs.untraced > 0 {
        skip_unless_strict(&format!(
            "this kernel fires no tracepoint in {} of {} softirqs: what timers do there nobody can see",
            softirqs.untraced, softirqs.counted
        ));
    }
}
