//! The conntrack table is full, so a packet that begins a connection is dropped.
//!
//! Established connections go on, which makes this look like anything but the firewall. The
//! kernel's own message is rate limited and names nobody.

use std::sync::Arc;

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::conntrack::TableFull,
};

use super::{Hook, Keeps, Oracle, ProbeSpec, Via, errno, family, flow, port, record};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Conntrack,
    about: "connections refused because the conntrack table is full",
    hooks: &[Hook {
        sees: "conntrack entries that could not be allocated",
        required: true,
        only_remembers: false,
        module: Some("nf_conntrack"),
        ways: &[&[
            Via::Kretprobe.on("__nf_conntrack_alloc", "conntrack_exit"),
            Via::Kprobe.on("__nf_conntrack_alloc", "conntrack_enter"),
        ]],
    }],
    needs: &[Field::TupleSaddr, Field::TupleDaddr],
    keeps: Keeps::Nothing,
    columns: &[
        Column::text("protocol", "PROTO", 6, "IP protocol of the packet"),
        Column::text("saddr", "SADDR", 15, "source address of the connection"),
        Column::number("sport", "SPORT", 5, "source port (id for ICMP)"),
        Column::text(
            "daddr",
            "DADDR",
            15,
            "destination address of the connection",
        ),
        Column::number(
            "dport",
            "DPORT",
            5,
            "destination port (type and code for ICMP)",
        ),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)"),
        Column::text("errno", "ERRNO", 8, "what __nf_conntrack_alloc returned").wide(),
        Column::text("family", "FAMILY", 11, "ipv4 or ipv6").hidden(),
        Column::text(
            "stack",
            "STACK",
            0,
            "kernel functions that led here, innermost first",
        )
        .hidden(),
    ],
    kernel_tests: &[],
    weight: "connections",
    decode,
    group,
    code,
    oracles: &[Oracle {
        unit: "packets dropped for a full table",
        counter: "nf_conntrack.drop",
        but: None,
        not_where: None,
        seen: |_, count| count.events,
    }],
};

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let event: TableFull = record(bytes)?;
    values.push(code(u32::from(event.flow.protocol), names));
    values.extend(flow(&event.flow));
    values.extend([
        Value::nonzero(event.flow.netns),
        errno(event.errno),
        family(&event.flow),
        names.stack(event.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    vec![
        ("protocol", code(key.code, names)),
        ("dport", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

/// The name of an IP protocol.
fn code(code: u32, _names: &mut dyn Names) -> Value {
    Value::Word(match code {
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        58 => "icmpv6",
        132 => "sctp",
        OTHER => "other",
        code => return Value::Text(Arc::from(code.to_string())),
    })
}
