//! A connection has ended: how long it lasted, what went over it, who closed it first and how.
//!
//! Connections that were open before the probe are shown with an unknown duration. It misses
//! handshakes that a peer never finished: those were no connections of anybody here.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::{
        Role,
        lifetimes::{Closer, Ending, Lifetime},
    },
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, ProbeSpec, Via, accepted_owner, cgroup, errno, family, flow,
    opened_ns, owner, port, record, tcp_state,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Lifetimes,
    about: "connections from open to close: duration, bytes, retransmits, who closed first, result",
    hooks: &[
        Hook {
            sees: "the end of each connection",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf
                .on("inet_sock_set_state", "lifetimes")
                .or_within("connects_state")]],
        },
        Hook {
            sees: "the destruction of sockets, which frees their entries",
            required: true,
            only_remembers: true,
            module: None,
            ways: &[&[Via::TpBtf.on("tcp_destroy_sock", "lifetimes_gone")]],
        },
    ],
    needs: &[
        Field::SkcDaddr,
        Field::SkcDport,
        Field::SkProtocol,
        Field::TcpBytesSent,
        Field::TcpBytesReceived,
    ],
    keeps: Keeps::Lives,
    columns: COLUMNS,
    kernel_tests: &[KernelTest::State, KernelTest::Cgroup],
    weight: "bytes",
    decode,
    group,
    code,
    oracles: &[],
};

const COLUMNS: &[Column] = &[
    Column::number(
        "pid",
        "PID",
        7,
        "process that opened it, closed it or holds it, or else the only one that listened there",
    ),
    Column::text("comm", "COMM", 15, "name of that process"),
    Column::text("role", "ROLE", 6, "client (opened it) or server (accepted)"),
    Column::text("saddr", "LADDR", 15, "local address"),
    Column::number("sport", "LPORT", 5, "local port"),
    Column::text("daddr", "RADDR", 15, "remote address"),
    Column::number("dport", "RPORT", 5, "remote port"),
    Column::number(
        "duration_ns",
        "DURATION",
        8,
        "from open to close, where the opening was seen",
    ),
    Column::number(
        "bytes_sent",
        "SENT",
        10,
        "bytes of data sent, each counted once",
    ),
    Column::number("bytes_received", "RECEIVED", 10, "bytes of data received"),
    Column::number("retransmits", "RETR", 4, "segments sent again"),
    Column::number("srtt_us", "SRTT", 7, "smoothed round-trip time"),
    Column::text("result", "RESULT", 7, "fin, reset, timeout or failed"),
    Column::text("closer", "CLOSER", 6, "the first to close: local or remote"),
    Column::text(
        "time_wait",
        "TW",
        3,
        "whether this end goes on in TIME_WAIT",
    ),
    Column::text("errno", "ERRNO", 12, "what the socket was left with").wide(),
    Column::text(
        "state",
        "STATE",
        10,
        "TCP state before the end, as in ss(8)",
    )
    .wide(),
    Column::number("segs_out", "SEGS-OUT", 8, "segments sent").wide(),
    Column::number("segs_in", "SEGS-IN", 8, "segments received").wide(),
    Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
    CGROUP,
    Column::text("family", "FAMILY", 11, "ipv4, ipv6 or ipv4-mapped").hidden(),
    Column::number("ino", "INODE", 8, "inode number of the socket").hidden(),
    Column::text(
        "stack",
        "STACK",
        0,
        "kernel functions that led here, innermost first",
    )
    .hidden(),
];

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let life: Lifetime = record(bytes)?;
    let opened = opened_ns(&life.header, life.duration_ns);
    // What was accepted and aborted before anybody owned it, or by one that had closed it when we looked,
    // belongs to the listener's process. One from before us that nobody has is of who knows whom.
    let is_listeners = life.role == Role::Server as u8 && (opened.is_some() || life.owner.ino != 0);
    let [pid, comm, ino] = if is_listeners {
        accepted_owner(&life.owner, &life.flow, opened, names)
    } else {
        owner(&life.owner, names)
    };
    values.extend([pid, comm, super::role(life.role)]);
    values.extend(flow(&life.flow));
    values.extend([
        Value::nonzero(life.duration_ns),
        Value::Unsigned(life.bytes_sent),
        Value::Unsigned(life.bytes_received),
        Value::Unsigned(u64::from(life.retransmits)),
        Value::nonzero(life.srtt_us),
        Value::Word(Ending::name_of(u32::from(life.ending))),
        Closer::name_of(life.closer).map_or(Value::Unknown, Value::Word),
        Value::Word(if life.time_wait == 0 { "no" } else { "yes" }),
        errno(life.errno),
        tcp_state(life.state),
        Value::Unsigned(u64::from(life.segs_out)),
        Value::Unsigned(u64::from(life.segs_in)),
        Value::nonzero(life.flow.netns),
        cgroup(&life.owner, names),
        family(&life.flow),
        ino,
        names.stack(life.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    // The kernel counts the role in the place of a code location.
    let role = u8::try_from(key.location).unwrap_or(Role::Server as u8);
    vec![
        ("result", code(key.code, names)),
        ("role", super::role(role)),
        ("service_port", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    Value::Word(if code == OTHER {
        "other"
    } else {
        Ending::name_of(code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::tests::asked;
    use netprobe_common::{header::Header, record::Plain, records::Owner};

    #[test]
    fn a_listener_is_asked_for_unless_nobody_knows_since_when_there_is_what_nobody_has() {
        for (duration_ns, ino, expected) in
            [(60, 0, Some(Some(40))), (0, 7, Some(None)), (0, 0, None)]
        {
            let life = Lifetime {
                header: Header {
                    ts_ns: 100,
                    ..Header::zeroed()
                },
                owner: Owner {
                    ino,
                    ..Owner::zeroed()
                },
                duration_ns,
                role: Role::Server as u8,
                ..Lifetime::zeroed()
            };
            let (arrival, _) = asked(&SPEC, &life);
            let asked = arrival.map(|arrival| arrival.opened_ns);
            assert_eq!(asked, expected, "{duration_ns} {ino}");
        }
    }
}
