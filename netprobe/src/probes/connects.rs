//! How opening a connection went: how long it took, how it failed, and what finding a local port
//! cost.
//!
//! A connect that began before the probe is seen when it ends, without its latency.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::connects::{Connect, ErrnoSource, NOT_COUNTED, Outcome},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, ProbeSpec, Via, cgroup, errno, family, flow, owner, port,
    record,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Connects,
    about: "outgoing connections: latency, failures by errno, SYN attempts, port search",
    hooks: &[
        Hook {
            sees: "the outcome of each connect",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("inet_sock_set_state", "connects_state")]],
        },
        Hook {
            sees: "errno of connects that fail at once",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[
                &[
                    Via::Fentry.on("tcp_v4_connect", "connects_call4"),
                    Via::Fexit.on("tcp_v4_connect", "connects_ret4"),
                    Via::Fentry.on("tcp_v6_connect", "connects_call6"),
                    Via::Fexit.on("tcp_v6_connect", "connects_ret6"),
                ],
                &[
                    Via::Kretprobe.on("tcp_v4_connect", "connects_ret4_k"),
                    Via::Kprobe.on("tcp_v4_connect", "connects_call4_k"),
                    Via::Kretprobe.on("tcp_v6_connect", "connects_ret4_k"),
                    Via::Kprobe.on("tcp_v6_connect", "connects_call4_k"),
                ],
            ],
        },
        Hook {
            sees: "time of the port search",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[
                &[
                    Via::Fexit.on("inet_hash_connect", "connects_found4"),
                    Via::Fentry.on("inet_hash_connect", "connects_find4"),
                    Via::Fexit.on("inet6_hash_connect", "connects_found6"),
                    Via::Fentry.on("inet6_hash_connect", "connects_find6"),
                ],
                &[
                    Via::Kretprobe.on("inet_hash_connect", "connects_found_k"),
                    Via::Kprobe.on("inet_hash_connect", "connects_find_k"),
                    Via::Kretprobe.on("inet6_hash_connect", "connects_found_k"),
                    Via::Kprobe.on("inet6_hash_connect", "connects_find_k"),
                ],
            ],
        },
    ],
    needs: &[Field::SkcDaddr, Field::SkcDport, Field::SkProtocol],
    keeps: Keeps::Connects,
    columns: &[
        Column::number("pid", "PID", 7, "process that called connect"),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port; 0 when none was found"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text(
            "outcome",
            "OUTCOME",
            11,
            "established, failed or aborted (closed while waiting)",
        ),
        Column::text("errno", "ERRNO", 13, "why it failed"),
        Column::number("latency_ns", "LAT", 7, "from the call to the outcome"),
        Column::number("syn_attempts", "SYNS", 4, "SYNs sent, the first included"),
        Column::number(
            "search_ns",
            "SEARCH",
            7,
            "time of the port search (inet_hash_connect)",
        ),
        Column::number(
            "candidates",
            "PORTS",
            6,
            "candidate ports examined, while they are counted",
        ),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        CGROUP,
        Column::text(
            "errno_source",
            "ERRNO-FROM",
            10,
            "return, socket, or inferred",
        )
        .wide(),
        Column::text("family", "FAMILY", 11, "ipv4, ipv6 or ipv4-mapped").hidden(),
        Column::number("ino", "INODE", 8, "inode number of the socket").hidden(),
        Column::text(
            "stack",
            "STACK",
            0,
            "kernel functions that led here, innermost first",
        )
        .hidden(),
    ],
    kernel_tests: &[KernelTest::Cgroup, KernelTest::Caller],
    weight: "sum(latency_ns)",
    decode,
    group,
    code,
    oracles: &[],
};

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let connect: Connect = record(bytes)?;
    let [pid, comm, ino] = owner(&connect.owner, names);
    values.extend([pid, comm]);
    values.extend(flow(&connect.flow));
    values.extend([
        Value::Word(Outcome::name_of(connect.outcome)),
        errno(connect.errno),
        Value::nonzero(connect.latency_ns),
        Value::Unsigned(u64::from(connect.syn_attempts)),
        Value::nonzero(connect.search_ns),
        match connect.candidates {
            NOT_COUNTED => Value::Unknown,
            count => Value::Unsigned(u64::from(count)),
        },
        Value::nonzero(connect.flow.netns),
        cgroup(&connect.owner, names),
        errno_source(connect.errno_source),
        family(&connect.flow),
        ino,
        names.stack(connect.stack),
    ]);
    Ok(())
}

fn errno_source(raw: u8) -> Value {
    const RETURN: u8 = ErrnoSource::Return as u8;
    const SOCKET: u8 = ErrnoSource::Socket as u8;
    const INFERRED: u8 = ErrnoSource::Inferred as u8;
    match raw {
        RETURN => Value::Word("return"),
        SOCKET => Value::Word("socket"),
        INFERRED => Value::Word("inferred"),
        _ => Value::Unknown,
    }
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    // The kernel counts the outcome in the place of a code location.
    let outcome = u8::try_from(key.location).unwrap_or(u8::MAX);
    vec![
        ("outcome", Value::Word(Outcome::name_of(outcome))),
        ("errno", code(key.code, names)),
        ("dport", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    if code == OTHER {
        Value::Word("other")
    } else {
        errno(code.cast_signed())
    }
}

/// Counts candidate ports; attached only in short windows, since it runs for each of them.
pub static CANDIDATES: Hook = Hook {
    sees: "candidate ports per connect",
    required: false,
    only_remembers: false,
    module: None,
    ways: &[
        &[
            Via::Fentry.on("__inet_check_established", "connects_check4"),
            Via::Fentry.on("__inet6_check_established", "connects_check6"),
        ],
        &[
            Via::Kprobe.on("__inet_check_established", "connects_check_k"),
            Via::Kprobe.on("__inet6_check_established", "connects_check_k"),
        ],
    ],
};
