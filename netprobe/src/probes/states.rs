//! A socket went from one TCP state to another, and how long it had been in the old one: a
//! handshake that hangs, a connection that nobody closes, a listener that comes and goes.
//!
//! TIME_WAIT is kept in a small socket of its own and is not seen here; see `time-wait`. The time
//! in a state is unknown for the first change of a socket that was there before.

use std::sync::Arc;

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::{Role, states::StateChange},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, ProbeSpec, Via, accepted_owner, cgroup, family, flow, owner,
    port, record, tcp_state,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::States,
    about: "changes of TCP states: from which to which, after how long, whose",
    hooks: &[
        Hook {
            sees: "changes of TCP states",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("inet_sock_set_state", "states")]],
        },
        Hook {
            sees: "the destruction of sockets, which frees their entries",
            required: true,
            only_remembers: true,
            module: None,
            ways: &[&[Via::TpBtf.on("tcp_destroy_sock", "states_gone")]],
        },
    ],
    needs: &[Field::SkcDaddr, Field::SkcDport, Field::SkProtocol],
    keeps: Keeps::States,
    columns: &[
        Column::number(
            "pid",
            "PID",
            7,
            "process that opened the connection or listens, or else the only one that listens there, or closed it",
        ),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text("old_state", "OLD", 11, "TCP state before, as in ss(8)"),
        Column::text("state", "NEW", 11, "TCP state after, as in ss(8)"),
        Column::number(
            "in_state_ns",
            "IN-OLD",
            7,
            "time in the old state, where its beginning was seen",
        ),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        CGROUP,
        Column::text(
            "socket",
            "SOCKET",
            16,
            "address of the socket in the kernel, which tells sockets apart",
        )
        .hidden(),
        Column::number("uid", "UID", 6, "user that the socket belongs to").hidden(),
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
    weight: "sum(in_state_ns)",
    decode,
    group,
    code,
    oracles: &[],
};

/// TCP states (`include/net/tcp_states.h`).
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let change: StateChange = record(bytes)?;
    let opened_ns = (change.opened_ns != 0).then_some(change.opened_ns);
    // A listener has a backlog too. When it makes a connection, that has no peer yet.
    let is_listener = matches!((change.old, change.new), (_, LISTEN) | (LISTEN, CLOSE));
    // As of `lifetimes`: one from before us that nobody has is of who knows whom.
    let is_listeners = !is_listener
        && change.role == Role::Server as u8
        && (opened_ns.is_some() || change.owner.ino != 0);
    let [pid, comm, ino] = if is_listeners {
        accepted_owner(&change.owner, &change.flow, opened_ns, names)
    } else {
        owner(&change.owner, names)
    };
    values.extend([pid, comm]);
    values.extend(flow(&change.flow));
    values.extend([
        tcp_state(change.old),
        tcp_state(change.new),
        Value::nonzero(change.in_state_ns),
        Value::nonzero(change.flow.netns),
        cgroup(&change.owner, names),
        // Text, because it does not fit the numbers of every reader of JSON.
        Value::Text(Arc::from(format!("{:x}", change.socket))),
        Value::Unsigned(u64::from(change.uid)),
        family(&change.flow),
        ino,
        names.stack(change.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    // The kernel counts the old state in the place of a code location.
    let old = u8::try_from(key.location).unwrap_or(0);
    vec![
        ("old_state", tcp_state(old)),
        ("state", code(key.code, names)),
        ("service_port", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    if code == OTHER {
        return Value::Word("other");
    }
    tcp_state(u8::try_from(code).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use netprobe_common::record::Plain as _;

    use super::*;
    use crate::probes::tests::asked;

    #[test]
    fn a_connection_that_nobody_has_accepted_yet_is_of_who_listens() {
        let mut change = StateChange::zeroed();
        change.flow.sport = 443_u16.to_be_bytes();
        change.flow.dport = 40_000_u16.to_be_bytes();
        change.opened_ns = 99;
        change.role = Role::Server as u8;
        let (arrival, values) = asked(&SPEC, &change);
        let arrival = arrival.unwrap();
        assert_eq!((arrival.local.1, arrival.opened_ns), (443, Some(99)));
        assert_eq!(values[0], Value::Unsigned(815));
        change.role = Role::Client as u8;
        assert_eq!(asked(&SPEC, &change).0, None);
        change.role = Role::Server as u8;
        change.opened_ns = 0;
        assert_eq!(asked(&SPEC, &change).0, None, "from before us, of nobody");
        change.opened_ns = 99;
        change.flow.dport = [0; 2];
        for (old, new, is_asked) in [
            (LISTEN, 3, true),
            (LISTEN, CLOSE, false),
            (CLOSE, LISTEN, false),
        ] {
            (change.old, change.new) = (old, new);
            assert_eq!(asked(&SPEC, &change).0.is_some(), is_asked, "{old} {new}");
        }
    }
}
