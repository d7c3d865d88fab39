//! A closed connection holds its pair of addresses for a minute more, so that late packets of it
//! are not taken for those of a new one.
//!
//! On the connecting side each one takes a local port away from new connections to the same
//! service. Where there is no room the connection is forgotten at once, which is a risk, not a
//! relief; without function probes this cannot be told from an entry.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::time_wait::{Outcome, TimeWait},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, ProbeSpec, Via, cgroup, family, flow, owner, port, record,
    tcp_state,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::TimeWait,
    about: "entries into TIME_WAIT: which connection, whose, on which side, and refusals",
    hooks: &[
        Hook {
            sees: "whether there was room in TIME_WAIT",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[
                &[Via::Fexit.on("inet_twsk_alloc", "time_wait")],
                &[
                    Via::Kretprobe.on("inet_twsk_alloc", "time_wait_exit_k"),
                    Via::Kprobe.on("inet_twsk_alloc", "time_wait_enter_k"),
                ],
            ],
        },
        Hook {
            sees: "connections on their way to TIME_WAIT, and their owners",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[
                Via::TpBtf.on("inet_sock_set_state", "time_wait_state"),
                Via::TpBtf.on("tcp_destroy_sock", "time_wait_gone"),
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
            "process that opened the connection, or else the one that closed it",
        ),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text(
            "role",
            "ROLE",
            6,
            "client (a local port is taken) or server",
        ),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text(
            "outcome",
            "OUTCOME",
            7,
            "entered, or refused for want of room, where it can be seen",
        ),
        Column::text(
            "state",
            "STATE",
            10,
            "TIME-WAIT, or FIN-WAIT-2 until the peer closes too",
        ),
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
    kernel_tests: &[KernelTest::State, KernelTest::Cgroup],
    weight: "connections",
    decode,
    group,
    code,
    oracles: &[],
};

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let event: TimeWait = record(bytes)?;
    let [pid, comm, ino] = owner(&event.owner, names);
    values.extend([pid, comm, super::role(event.role)]);
    values.extend(flow(&event.flow));
    values.extend([
        code(u32::from(event.outcome), names),
        tcp_state(event.state),
        Value::nonzero(event.flow.netns),
        cgroup(&event.owner, names),
        family(&event.flow),
        ino,
        names.stack(event.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    // The kernel counts the role in the place of a code location.
    let role = u8::try_from(key.location).unwrap_or(0);
    vec![
        ("outcome", code(key.code, names)),
        ("role", super::role(role)),
        ("service_port", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    if code == OTHER {
        return Value::Word("other");
    }
    let name = u8::try_from(code).ok().and_then(Outcome::name_of);
    name.map_or(Value::Unknown, Value::Word)
}
