//! A listener turned a client away, because nobody accepted the connections before it.
//!
//! The client notices seconds later, if at all: its SYN is retransmitted after 1, 3, 7 s. On
//! machines where functions cannot be probed only the kernel's counters show this.

use netprobe_common::{
    counters::{Count, CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::listeners::{Refusal, Stage},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, Oracle, ProbeSpec, Via, cgroup, family, flow, ip, owner, port,
    record,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Setting, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Listeners,
    about: "connections that a listener refused: accept queue or SYN backlog full, whose, how full",
    hooks: &[
        Hook {
            sees: "SYNs refused by a full accept queue or SYN backlog",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[
                &[
                    Via::Fexit.on("tcp_conn_request", "listeners_done"),
                    Via::Fentry.on("tcp_conn_request", "listeners_syn"),
                ],
                &[
                    Via::Kretprobe.on("tcp_conn_request", "listeners_done_k"),
                    Via::Kprobe.on("tcp_conn_request", "listeners_syn_k"),
                ],
            ],
        },
        Hook {
            sees: "handshakes refused at the final ACK, IPv4",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[
                &[Via::Fentry.on("tcp_v4_syn_recv_sock", "listeners_ack4")],
                &[Via::Kprobe.on("tcp_v4_syn_recv_sock", "listeners_ack4_k")],
            ],
        },
        Hook {
            sees: "handshakes refused at the final ACK, IPv6",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[
                &[Via::Fentry.on("tcp_v6_syn_recv_sock", "listeners_ack6")],
                &[Via::Kprobe.on("tcp_v6_syn_recv_sock", "listeners_ack6_k")],
            ],
        },
    ],
    needs: &[Field::SkAckBacklog, Field::SkMaxAckBacklog, Field::IcskQlen],
    keeps: Keeps::Nothing,
    columns: &[
        Column::number("pid", "PID", 7, "process that owns the listener"),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("listener", "LISTENER", 15, "address that it listens on"),
        Column::number("listener_port", "PORT", 5, "port that it listens on"),
        Column::text("stage", "STAGE", 16, "which queue was full, and when"),
        Column::number(
            "accept_queue",
            "ACCEPTQ",
            7,
            "connections waiting for accept",
        ),
        Column::number(
            "accept_limit",
            "LIMIT",
            6,
            "limit of the accept queue: min(listen(), somaxconn)",
        ),
        Column::number("syn_backlog", "SYNQ", 6, "half-open connections"),
        Column::text("saddr", "CLIENT", 15, "address of the client"),
        Column::number("sport", "CPORT", 5, "port of the client"),
        Column::text("daddr", "DADDR", 15, "address that the client wanted").wide(),
        Column::number("dport", "DPORT", 5, "port that the client wanted").wide(),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        CGROUP,
        Column::number("syn_limit", "SYNLIMIT", 8, "net.ipv4.tcp_max_syn_backlog").wide(),
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
    weight: "connections",
    decode,
    group,
    code,
    oracles: &[
        Oracle {
            unit: "overflows of accept queues",
            counter: "TcpExt.ListenOverflows",
            but: None,
            not_where: None,
            seen: |key, count| {
                of_stages(key, count, &[Stage::SynAcceptQueue, Stage::AckAcceptQueue])
            },
        },
        Oracle {
            unit: "SYNs dropped for a full backlog",
            counter: "TcpExt.TCPReqQFullDrop",
            but: None,
            not_where: None,
            seen: |key, count| of_stages(key, count, &[Stage::SynBacklog]),
        },
        Oracle {
            unit: "SYNs answered with a cookie",
            counter: "TcpExt.TCPReqQFullDoCookies",
            but: None,
            not_where: Some(Setting {
                name: "net.ipv4.tcp_syncookies",
                value: "2",
                about: "every SYN",
            }),
            seen: |key, count| of_stages(key, count, &[Stage::SynCookie]),
        },
    ],
};

fn of_stages(key: &CountKey, count: &Count, stages: &[Stage]) -> u64 {
    let is_one = stages.iter().any(|stage| *stage as u32 == key.code);
    if is_one { count.events } else { 0 }
}

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let refusal: Refusal = record(bytes)?;
    let [pid, comm, ino] = owner(&refusal.owner, names);
    let [saddr, sport, daddr, dport] = flow(&refusal.flow);
    values.extend([
        pid,
        comm,
        ip(refusal.listener_family, refusal.listener_addr),
        Value::Unsigned(u64::from(refusal.listener_port)),
        Value::Word(Stage::name_of(refusal.stage)),
        Value::Unsigned(u64::from(refusal.accept_queue)),
        Value::Unsigned(u64::from(refusal.accept_limit)),
        Value::Unsigned(u64::from(refusal.syn_backlog)),
        saddr,
        sport,
        daddr,
        dport,
        Value::nonzero(refusal.flow.netns),
        cgroup(&refusal.owner, names),
        Value::Unsigned(u64::from(refusal.syn_limit)),
        family(&refusal.flow),
        ino,
        names.stack(refusal.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    vec![
        ("stage", code(key.code, names)),
        ("listener_port", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    Value::Word(if code == OTHER {
        "other"
    } else {
        Stage::name_of(code)
    })
}
