//! Nothing happens, and nothing is said to be wrong.

use netprobe_tests::skip::{is_disposable, is_root, skip};

use crate::verdict::Verdict;

#[test]
fn an_idle_machine_has_no_finding_above_info() {
    if !is_root() {
        return;
    }
    if !is_disposable() {
        skip("who knows what else this machine does: only on a disposable one");
        return;
    }
    Verdict::of_all().is_quiet();
}
