//! What findings mean, without root.

use crate::{assert_complaint, netprobe};

#[test]
fn every_finding_is_listed_and_explained() {
    let list = netprobe(&["explain"]);
    assert!(list.status.success());
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(list.lines().count(), 26, "{list}");
    for line in list.lines() {
        let id = line.split(' ').next().expect("an id");
        let output = netprobe(&["explain", id]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{id}");
        for heading in ["What people see", "How Linux gets there", "What helps"] {
            assert!(text.contains(heading), "{id}: {text}");
        }
    }
}

#[test]
fn an_unknown_finding_is_a_usage_error_that_says_where_they_are() {
    let output = netprobe(&["explain", "bad-weather"]);
    assert_complaint(&output, 2, "`netprobe explain` lists them");
}
