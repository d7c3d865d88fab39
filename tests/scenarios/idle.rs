//! Nothing happens, and nothing is said to be wrong.

use std::env;

use netprobe_tests::skip::{is_root, skip};

use crate::verdict::Verdict;

#[test]
fn an_idle_machine_has_no_finding_above_info() {
    if !is_root() {
        return;
    }
    if env::var_os("NETPROBE_DISPOSABLE").is_none_or(|value| value != "1") {
        skip("who knows what else this machine does: only on a disposable one");
        return;
    }
    Verdict::of_all().is_quiet();
}
