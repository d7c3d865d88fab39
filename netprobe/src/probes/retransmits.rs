//! TCP sent something again, because it was not acknowledged in time: the path loses packets,
//! the peer is overloaded, or (for SYNs) nobody answers at all. An attempt that sent nothing says why in `err`.
//!
//! It cannot tell where a packet was lost, only that its acknowledgement did not come.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::retransmits::{Cause, Retransmit},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, Oracle, ProbeSpec, Via, accepted_owner, cgroup, errno, family,
    flow, owner, port, record, tcp_state,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Retransmits,
    about: "segments that TCP sent again, or could not: data, SYN, SYN-ACK and tail loss probes, with the cause",
    hooks: &[
        Hook {
            sees: "data and SYN retransmissions",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("tcp_retransmit_skb", "retransmits")]],
        },
        Hook {
            sees: "SYN-ACK retransmissions",
            required: false,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("tcp_retransmit_synack", "retransmits_synack")]],
        },
        Hook {
            sees: "who opens and closes connections",
            required: false,
            only_remembers: true,
            module: None,
            ways: &[&[
                Via::TpBtf.on("inet_sock_set_state", "retransmits_state"),
                Via::TpBtf.on("tcp_destroy_sock", "retransmits_gone"),
            ]],
        },
    ],
    needs: &[Field::SkcDaddr, Field::SkcDport, Field::SkbTcpGsoSegs],
    keeps: Keeps::Owners,
    columns: &[
        Column::number("pid", "PID", 7, "process that owns the socket"),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("saddr", "LADDR", 15, "local address"),
        Column::number("sport", "LPORT", 5, "local port"),
        Column::text("daddr", "RADDR", 15, "remote address"),
        Column::number("dport", "RPORT", 5, "remote port"),
        Column::text("state", "STATE", 12, "TCP state of the socket, as in ss(8)"),
        Column::text(
            "cause",
            "CAUSE",
            7,
            "rto, fast, tlp, syn, syn-ack, or other: without loss, as where the path MTU became smaller",
        ),
        Column::number(
            "attempt",
            "TRY",
            3,
            "which attempt this is for the same data; - if none of them got as far as the counters",
        ),
        Column::number(
            "segs",
            "SEGS",
            4,
            "segments that went out again, 0 where ERR says why none did (RetransSegs less TCPRetransFail)",
        ),
        Column::number("srtt_us", "SRTT", 7, "smoothed round-trip time"),
        Column::text(
            "err",
            "ERR",
            8,
            "why nothing went out: EBUSY if what was sent before still waits here (for the neighbour's address, in a \
             queue), EPERM if a firewall here dropped it, … (kernels from 6.17 on; before, such attempts are not seen)",
        ),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        CGROUP,
        Column::number("cwnd", "CWND", 6, "congestion window in segments").wide(),
        Column::number("seq", "SEQ", 10, "first sequence number sent again").hidden(),
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
    weight: "segs",
    decode,
    group,
    code,
    oracles: &[Oracle {
        unit: "segments",
        counter: "Tcp.RetransSegs",
        // Counted before the attempt, which may fail further down.
        but: Some("TcpExt.TCPRetransFail"),
        not_where: None,
        seen: |_, count| count.weight,
    }],
};

/// TCP states.
const ESTAB: u8 = 1;
const SYN_RECV: u8 = 3;
const CLOSE_WAIT: u8 = 8;
const NEW_SYN_RECV: u8 = 12;

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    let event: Retransmit = record(bytes)?;
    // What nobody has accepted or closed yet belongs to the listener's process, which is there: without it,
    // it would have been reset. Others that nobody has any more came at any time.
    let waits =
        event.owner.ino == 0 && matches!(event.state, ESTAB | SYN_RECV | CLOSE_WAIT | NEW_SYN_RECV);
    let opened = waits.then_some(event.header.ts_ns);
    let [pid, comm, ino] = if waits || event.owner.ino != 0 {
        accepted_owner(&event.owner, &event.flow, opened, names)
    } else {
        owner(&event.owner, names)
    };
    values.extend([pid, comm]);
    values.extend(flow(&event.flow));
    values.extend([
        tcp_state(event.state),
        Value::Word(Cause::name_of(u32::from(event.cause))),
        Value::nonzero(event.attempt),
        Value::Unsigned(u64::from(sent(&event))),
        Value::nonzero(event.srtt_us),
        errno(event.err),
        Value::nonzero(event.flow.netns),
        cgroup(&event.owner, names),
        Value::nonzero(event.cwnd),
        Value::Unsigned(u64::from(event.seq)),
        family(&event.flow),
        ino,
        names.stack(event.stack),
    ]);
    Ok(())
}

/// Segments that went out; the kernel side counts the same (`weight` in its program).
const fn sent(event: &Retransmit) -> u32 {
    if event.err == 0 { event.segs } else { 0 }
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    vec![
        ("cause", code(key.code, names)),
        ("dport", port(key.port)),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, _names: &mut dyn Names) -> Value {
    Value::Word(if code == OTHER {
        "other"
    } else {
        Cause::name_of(code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::tests::asked;
    use netprobe_common::{header::Header, record::Plain, records::Owner};

    #[test]
    fn what_waits_to_be_accepted_is_of_who_listens_now_and_what_was_closed_before_us_of_nobody() {
        const FIN_WAIT_1: u8 = 4;
        for (state, ino, expected) in [
            (NEW_SYN_RECV, 0, Some(Some(100))),
            (ESTAB, 0, Some(Some(100))),
            (ESTAB, 7, Some(None)),
            (FIN_WAIT_1, 0, None),
        ] {
            let event = Retransmit {
                header: Header {
                    ts_ns: 100,
                    ..Header::zeroed()
                },
                owner: Owner {
                    ino,
                    ..Owner::zeroed()
                },
                state,
                ..Retransmit::zeroed()
            };
            let (arrival, _) = asked(&SPEC, &event);
            let asked = arrival.map(|arrival| arrival.opened_ns);
            assert_eq!(asked, expected, "{state} {ino}");
        }
    }

    /// The values of `attempt`, `segs` and `err`.
    fn shown(event: &Retransmit) -> [Value; 3] {
        let (_, values) = asked(&SPEC, event);
        ["attempt", "segs", "err"].map(|name| {
            let place = SPEC.columns.iter().position(|column| column.name == name);
            values[place.unwrap()].clone()
        })
    }

    #[test]
    fn an_attempt_that_sent_nothing_says_so_and_why() {
        let sent = Retransmit {
            attempt: 1,
            segs: 3,
            ..Retransmit::zeroed()
        };
        let one = Value::Unsigned(1);
        assert_eq!(
            shown(&sent),
            [one.clone(), Value::Unsigned(3), Value::Unknown]
        );
        let unsent = Retransmit {
            attempt: 0,
            err: -libc::EBUSY,
            ..sent
        };
        let none = Value::Unsigned(0);
        assert_eq!(
            shown(&unsent),
            [Value::Unknown, none.clone(), Value::Word("EBUSY")]
        );
        let dropped = Retransmit {
            err: -libc::EPERM,
            ..sent
        };
        assert_eq!(shown(&dropped), [one, none, Value::Word("EPERM")]);
    }

    #[test]
    fn why_nothing_went_out_is_in_every_table() {
        let err = SPEC.columns.iter().find(|column| column.name == "err");
        assert_eq!(err.unwrap().shown, crate::report::Shown::Always);
    }
}
