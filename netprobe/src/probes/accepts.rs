//! A connection came in and a process took it up: who, after how long a wait, and how many were
//! still waiting then. A process that accepts too slowly shows here before its queue is full.
//!
//! Where functions cannot be probed, the end of the handshake is shown instead (`established`),
//! with the process that holds the listening socket, if it is only one.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::accepts::{Accept, NO_QUEUE, Seen},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, ProbeSpec, Via, accepted_owner, cgroup, family, flow, port,
    record,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Accepts,
    about: "connections that came in and were accepted: by whom, after how long a wait",
    hooks: &[
        Hook {
            sees: "connections that were accepted (tp_btf: that were established)",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[
                &[
                    Via::Fexit.on("inet_csk_accept", "accepts_four"),
                    Via::Fentry.on("security_sock_graft", "accepts_graft"),
                ],
                &[
                    Via::Fexit.on("inet_csk_accept", "accepts_two"),
                    Via::Fentry.on("security_sock_graft", "accepts_graft"),
                ],
                &[
                    Via::Kretprobe.on("inet_csk_accept", "accepts_exit_k"),
                    Via::Kprobe.on("inet_csk_accept", "accepts_enter_k"),
                    Via::Kprobe.on("security_sock_graft", "accepts_graft_k"),
                ],
                // Without CONFIG_SECURITY_NETWORK: what a process waits for already is not seen.
                &[Via::Fexit.on("inet_csk_accept", "accepts_four")],
                &[Via::Fexit.on("inet_csk_accept", "accepts_two")],
                &[
                    Via::Kretprobe.on("inet_csk_accept", "accepts_exit_k"),
                    Via::Kprobe.on("inet_csk_accept", "accepts_enter_k"),
                ],
                &[Via::TpBtf.on("inet_sock_set_state", "accepts_established")],
            ],
        },
        Hook {
            sees: "since when a connection waits",
            required: false,
            only_remembers: true,
            module: None,
            ways: &[&[
                Via::TpBtf.on("inet_sock_set_state", "accepts_state"),
                Via::TpBtf.on("tcp_destroy_sock", "accepts_gone"),
            ]],
        },
    ],
    needs: &[Field::SkcDaddr, Field::SkcDport, Field::SkProtocol],
    keeps: Keeps::Lives,
    columns: &[
        Column::number(
            "pid",
            "PID",
            7,
            "process that called accept, or else the only one that listens there",
        ),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text(
            "seen",
            "SEEN",
            11,
            "accepted, or established where accept cannot be seen",
        ),
        Column::number(
            "waited_ns",
            "WAITED",
            7,
            "from the end of the handshake to accept",
        ),
        Column::number(
            "accept_queue",
            "ACCEPTQ",
            7,
            "connections that still wait to be accepted",
        ),
        Column::number("accept_limit", "LIMIT", 6, "how many may wait"),
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
    ],
    kernel_tests: &[KernelTest::Cgroup],
    weight: "sum(waited_ns)",
    decode,
    group,
    code,
    oracles: &[],
};

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let accept: Accept = record(bytes)?;
    let [pid, comm, ino] = accepted_owner(
        &accept.owner,
        &accept.flow,
        Some(accept.header.ts_ns),
        names,
    );
    values.extend([pid, comm]);
    values.extend(flow(&accept.flow));
    values.extend([
        Value::Word(Seen::name_of(accept.seen)),
        Value::nonzero(accept.waited_ns),
        match accept.accept_queue {
            NO_QUEUE => Value::Unknown,
            waiting => Value::Unsigned(u64::from(waiting)),
        },
        Value::Unsigned(u64::from(accept.accept_limit)),
        Value::nonzero(accept.flow.netns),
        cgroup(&accept.owner, names),
        family(&accept.flow),
        ino,
        names.stack(accept.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    vec![
        ("seen", code(key.code, names)),
        ("service_port", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    Value::Word(if code == OTHER {
        "other"
    } else {
        Seen::name_of(code)
    })
}
