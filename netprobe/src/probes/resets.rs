//! A connection was reset: the peer or this machine refused it, gave it up or threw data away.
//!
//! A reset after a long idle time points at a NAT or firewall that forgot the connection. It
//! misses resets that a firewall makes up (`REJECT --reject-with tcp-reset`) and those received
//! for connections in TIME_WAIT or half open. In FIN-WAIT the kernel treats late data as if it
//! were a reset: then "received" comes just before the "sent" that answers it.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::resets::{Cause, Direction, NO_IDLE, NO_REASON, Reset},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, Oracle, ProbeSpec, Via, accepted_owner, cgroup, family, flow,
    opened_ns, owner, port, record, tcp_state,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Resets,
    about: "resets sent and received: why, in which state, after how long an idle time",
    hooks: &[
        Hook {
            sees: "resets that connections and listeners send",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("tcp_send_reset", "resets_sent")]],
        },
        Hook {
            sees: "resets that answer packets without a connection",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[
                &[Via::TpBtf.on("tcp_send_reset", "resets_answer")],
                &[
                    Via::Fentry.on("tcp_v4_send_reset", "resets_answer4"),
                    Via::Fentry.on("tcp_v6_send_reset", "resets_answer6"),
                ],
                &[
                    Via::Kprobe.on("tcp_v4_send_reset", "resets_answer_k"),
                    Via::Kprobe.on("tcp_v6_send_reset", "resets_answer_k"),
                ],
            ],
        },
        Hook {
            sees: "resets that connections receive",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("tcp_receive_reset", "resets_received")]],
        },
        Hook {
            sees: "age of connections, and their state before they were closed",
            required: false,
            only_remembers: true,
            module: None,
            ways: &[&[
                Via::TpBtf.on("inet_sock_set_state", "resets_state"),
                Via::TpBtf.on("tcp_destroy_sock", "resets_gone"),
            ]],
        },
    ],
    needs: &[Field::SkcDaddr, Field::SkcDport, Field::SkbProtocol],
    keeps: Keeps::Lives,
    columns: &[
        Column::number(
            "pid",
            "PID",
            7,
            "process that owns the socket, or else the only one that listened there",
        ),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("direction", "DIR", 8, "sent or received"),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text(
            "state",
            "STATE",
            10,
            "TCP state of the socket before the reset, as in ss(8)",
        ),
        Column::text(
            "cause",
            "CAUSE",
            16,
            "why, as far as socket and packet tell on any kernel: no-listener, no-connection (a packet of none), time-wait (no data), \
             unexpected-ack (not of the handshake), data-after-close (data came after the application closed), unread-data \
             (it closed without reading all), linger-0 (it closed with SO_LINGER 0), disconnect (connect with AF_UNSPEC), \
             listener-closed (before it accepted), timeout (keepalive or TCP_USER_TIMEOUT), orphan (the kernel gave up after \
             the application closed), killed (as by ss -K), refused (by the peer)",
        ),
        Column::text(
            "reason",
            "REASON",
            24,
            "why, as the kernel names it (6.10 and later)",
        ),
        Column::number(
            "idle_ns",
            "IDLE",
            7,
            "since data last went either way; received: since the peer was last heard of",
        ),
        Column::number(
            "age_ns",
            "AGE",
            7,
            "since the connection was opened, where that was seen",
        ),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        CGROUP,
        Column::text("family", "FAMILY", 11, "ipv4, ipv6 or ipv4-mapped").hidden(),
        Column::number(
            "lastrcv_ns",
            "LASTRCV",
            7,
            "since data was last received, as in ss(8)",
        )
        .hidden(),
        Column::number(
            "acked_ns",
            "ACKED",
            7,
            "since the latest data that the peer acknowledged had been sent",
        )
        .hidden(),
        Column::number(
            "data",
            "DATA",
            6,
            "bytes of data that are lost: of the packet that it answers, or that were not read; received: that were not acknowledged",
        )
        .hidden(),
        Column::number("ino", "INODE", 8, "inode number of the socket").hidden(),
        Column::text(
            "stack",
            "STACK",
            0,
            "kernel functions that led here, innermost first",
        )
        .hidden(),
    ],
    kernel_tests: &[KernelTest::State, KernelTest::Cgroup],
    weight: "resets",
    decode,
    group,
    code,
    oracles: &[Oracle {
        unit: "resets sent",
        counter: "Tcp.OutRsts",
        but: None,
        not_where: None,
        seen: |key, count| {
            let is_sent = key.location >> 8 == Direction::Sent as u64;
            if is_sent { count.events } else { 0 }
        },
    }],
};

/// TCP states.
const SYN_SENT: u8 = 2;
const LISTEN: u8 = 10;

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let reset: Reset = record(bytes)?;
    // Of a connection that was reset and closed before we looked. One that we opened ourselves has no listener:
    // no port that somebody has bound is taken for those.
    let opened = opened_ns(&reset.header, reset.age_ns);
    let [pid, comm, ino] = if opened.is_some() && !matches!(reset.state, SYN_SENT | LISTEN) {
        accepted_owner(&reset.owner, &reset.flow, opened, names)
    } else {
        owner(&reset.owner, names)
    };
    values.extend([pid, comm, Value::Word(Direction::name_of(reset.direction))]);
    values.extend(flow(&reset.flow));
    values.extend([
        tcp_state(reset.state),
        cause(reset.cause),
        code(reset.reason, names),
        since(reset.idle_ns),
        Value::nonzero(reset.age_ns),
        Value::nonzero(reset.flow.netns),
        cgroup(&reset.owner, names),
        family(&reset.flow),
        since(reset.lastrcv_ns),
        since(reset.acked_ns),
        Value::nonzero(reset.data),
        ino,
        names.stack(reset.stack),
    ]);
    Ok(())
}

/// A time that is not always known.
fn since(ns: u64) -> Value {
    match ns {
        NO_IDLE => Value::Unknown,
        ns => Value::Unsigned(ns),
    }
}

fn cause(raw: u8) -> Value {
    cause_name(raw).map_or(Value::Unknown, Value::Word)
}

/// The name of a cause, as events and totals have it.
pub(crate) const fn cause_name(raw: u8) -> Option<&'static str> {
    Cause::name_of(raw)
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    // The kernel counts direction and cause in the place of a code location.
    let [cause_raw, direction, ..] = key.location.to_le_bytes();
    vec![
        ("direction", Value::Word(Direction::name_of(direction))),
        ("cause", cause(cause_raw)),
        ("reason", code(key.code, names)),
        ("service_port", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, names: &mut dyn Names) -> Value {
    match code {
        NO_REASON => Value::Unknown,
        OTHER => Value::Word("other"),
        code => names.reset_reason(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::tests::asked;
    use netprobe_common::{header::Header, record::Plain};

    #[test]
    fn every_cause_is_explained_where_the_column_is() {
        let cause = SPEC.columns.iter().find(|column| column.name == "cause");
        let about = cause.unwrap().about;
        for name in (0..=u8::MAX).filter_map(Cause::name_of) {
            assert!(about.contains(name), "{name}");
        }
    }

    #[test]
    fn a_reset_that_nobody_has_any_more_is_of_who_listened_when_its_connection_came() {
        for (state, age_ns, opened) in [
            (1, 60, Some(40)),
            (8, 60, Some(40)),
            (1, 0, None),
            (SYN_SENT, 60, None),
            (LISTEN, 60, None),
        ] {
            let reset = Reset {
                header: Header {
                    ts_ns: 100,
                    ..Header::zeroed()
                },
                age_ns,
                state,
                ..Reset::zeroed()
            };
            let (arrival, values) = asked(&SPEC, &reset);
            assert_eq!(
                arrival.and_then(|arrival| arrival.opened_ns),
                opened,
                "{state} {age_ns}"
            );
            let expected = opened.map_or(Value::Unknown, |_| Value::Unsigned(815));
            assert_eq!(values[0], expected, "{state} {age_ns}");
        }
    }
}
