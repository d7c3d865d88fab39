//! TCP states by the names that ss(8) takes, as sets with one bit each.

use netprobe_common::filter::NO_STATE;

use crate::{probes::tcp_state, report::Value};

/// Every state, and none.
pub(super) const ALL: u32 = 0x1ffe | NO_STATE;
const LISTEN: u32 = 1 << 10;
const CLOSE: u32 = 1 << 7;
const SYN_SENT: u32 = 1 << 2;
/// Of a connection, and of the request that becomes one.
const SYN_RECV: u32 = 1 << 3 | 1 << 12;
const TIME_WAIT: u32 = 1 << 6;
const CONNECTED: u32 = ALL & !(LISTEN | CLOSE | NO_STATE);

/// Names and what they stand for.
const NAMES: &[(&str, u32)] = &[
    ("established", 1 << 1),
    ("estab", 1 << 1),
    ("syn-sent", SYN_SENT),
    ("syn-recv", SYN_RECV),
    ("syn-rcv", SYN_RECV),
    ("new-syn-recv", 1 << 12),
    ("fin-wait-1", 1 << 4),
    ("fin-wait-2", 1 << 5),
    ("time-wait", TIME_WAIT),
    ("closed", CLOSE),
    ("close", CLOSE),
    ("unconnected", CLOSE),
    ("unconn", CLOSE),
    ("close-wait", 1 << 8),
    ("last-ack", 1 << 9),
    ("listening", LISTEN),
    ("listen", LISTEN),
    ("closing", 1 << 11),
    ("all", ALL),
    ("connected", CONNECTED),
    ("synchronized", CONNECTED & !SYN_SENT),
    ("bucket", SYN_RECV | TIME_WAIT),
    ("big", ALL & !(SYN_RECV | TIME_WAIT | NO_STATE)),
];

/// The states that `name` stands for.
pub(super) fn of_name(name: &str) -> Option<u32> {
    let name = name.to_lowercase().replace('_', "-");
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, states)| *states)
}

/// Every name.
pub(super) fn names() -> Vec<&'static str> {
    NAMES.iter().map(|(name, _)| *name).collect()
}

/// Whether the state that a row shows is one of `states`.
pub(super) fn contain(states: u32, shown: &Value) -> bool {
    if *shown == Value::Unknown {
        return states & NO_STATE != 0;
    }
    (1..=12).any(|number| states >> number & 1 != 0 && tcp_state(number) == *shown)
}
