//! An incident in records: one of every shape that each probe can write, names that are hostile
//! included, and the names that a running kernel would have given.

use std::{net::Ipv6Addr, sync::Arc};

use netprobe::{
    decode::{Arrival, Names},
    report::{Hook, Probe, Value},
};
use netprobe_common::{
    counters::{Count, CountKey, Counters, OTHER},
    header::{Event, Header, Kind},
    record::{Plain, bytes_of},
    records::{
        Flow, NO_STACK, Owner, Role,
        accepts::{Accept, NO_QUEUE, Seen},
        connects::{Connect, ErrnoSource, NOT_COUNTED, Outcome},
        conntrack::TableFull,
        drops::{Drop, NO_REASON},
        lifetimes::{Closer, Ending, Lifetime},
        listeners::{Refusal, Stage},
        resets::{self, Direction, NO_IDLE, Reset},
        retransmits::{Cause, Retransmit},
        states::StateChange,
        time_wait::{self, TimeWait},
    },
};

/// Names as they were recorded.
pub(crate) struct Recorded;

impl Names for Recorded {
    fn drop_reason(&mut self, code: u32) -> Value {
        match code {
            3 => Value::Word("NO_SOCKET"),
            code => Value::Text(Arc::from(code.to_string())),
        }
    }

    fn symbol(&mut self, address: u64) -> Value {
        Value::Text(Arc::from(format!("tcp_v4_rcv+{:#x}", address & 0xfff)))
    }

    fn stack(&mut self, id: i32) -> Value {
        if id == NO_STACK {
            return Value::Unknown;
        }
        Value::Stack(Arc::from([
            Arc::from("tcp_v4_rcv"),
            Arc::from("evil\u{1b}[2J"),
        ]))
    }

    fn owner(&mut self, owner: &Owner) -> Option<(u32, [u8; 16])> {
        (owner.pid != 0).then_some((owner.pid, owner.comm))
    }

    fn cgroup(&mut self, owner: &Owner) -> Value {
        match owner.cgroup {
            0 => Value::Unknown,
            _ => Value::Text(Arc::from("/system.slice/\u{1b}[1m\n.service")),
        }
    }

    fn listener(&mut self, arrival: &Arrival) -> Option<(u32, [u8; 16])> {
        (arrival.local.1 == 40_000).then_some((815, name(b"listens")))
    }

    fn clock_offset_ns(&self) -> i64 {
        1_790_000_000_000_000_000
    }
}

fn header<T: Event>(at_ms: u64) -> Header {
    let len = u16::try_from(size_of::<T>()).expect("records are small");
    Header {
        ts_ns: at_ms * 1_000_000,
        kind: T::KIND as u16,
        len,
        cpu: 1,
    }
}

fn name(text: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    name[..text.len()].copy_from_slice(text);
    name
}

fn ipv4(last: u8) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(&[10, 0, 0, last]);
    address
}

fn flow4() -> Flow {
    Flow {
        saddr: ipv4(1),
        daddr: ipv4(2),
        sport: 40_000_u16.to_be_bytes(),
        dport: 443_u16.to_be_bytes(),
        family: 2,
        protocol: 6,
        netns: 4_026_531_833,
        ifindex: 3,
    }
}

fn flow6() -> Flow {
    let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    Flow {
        saddr: address("2001:db8::1"),
        daddr: address("2001:db8:1111:2222:3333:4444:5555:6666"),
        family: 10,
        ..flow4()
    }
}

fn flow_mapped() -> Flow {
    let address = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    Flow {
        saddr: address("::ffff:10.0.0.1"),
        daddr: address("::ffff:10.0.0.2"),
        family: 10,
        ..flow4()
    }
}

fn owner(comm: &[u8]) -> Owner {
    Owner {
        ino: 46_220,
        pid: 4711,
        is_open: 0,
        comm: name(comm),
        cgroup: 4242,
    }
}

/// Records of one kind, as bytes.
pub(crate) fn records(kind: Kind) -> Vec<Vec<u8>> {
    match kind {
        Kind::Drops => drops(),
        Kind::Retransmits => retransmits(),
        Kind::Connects => connects(),
        Kind::Listeners => listeners(),
        Kind::Conntrack => conntrack(),
        Kind::Resets => resets(),
        Kind::Lifetimes => lifetimes(),
        Kind::TimeWait => time_wait(),
        Kind::States => states(),
        Kind::Accepts => accepts(),
    }
}

fn bytes<T: Plain>(records: &[T]) -> Vec<Vec<u8>> {
    records
        .iter()
        .map(|record| bytes_of(record).to_vec())
        .collect()
}

fn drops() -> Vec<Vec<u8>> {
    let without_socket = Drop {
        header: header::<Drop>(1),
        flow: flow4(),
        location: 0xffff_ffff_8123_4091,
        reason: 3,
        len: 60,
        seq: 1,
        stack: NO_STACK,
        tcp_flags: 2,
        ..Drop::zeroed()
    };
    let hostile = Drop {
        header: header::<Drop>(2),
        flow: flow_mapped(),
        owner: owner(b"a\x1b[31m\n;<b>"),
        state: 1,
        tcp_flags: 24,
        stack: 7,
        iface: name(b"eth0\x07"),
        ..without_socket
    };
    let old_kernel = Drop {
        header: header::<Drop>(1003),
        flow: flow6(),
        reason: NO_REASON,
        ..without_socket
    };
    let unknown_reason = Drop {
        reason: 0x0003_0001,
        tcp_flags: 0xff,
        ..old_kernel
    };
    bytes(&[without_socket, hostile, old_kernel, unknown_reason])
}

fn retransmits() -> Vec<Vec<u8>> {
    let rto = Retransmit {
        header: header::<Retransmit>(5),
        flow: flow4(),
        owner: owner(b"nginx"),
        seq: 1000,
        segs: 3,
        attempt: 2,
        srtt_us: 1234,
        cwnd: 10,
        stack: NO_STACK,
        state: 1,
        cause: Cause::Rto as u8,
        ..Retransmit::zeroed()
    };
    let syn = Retransmit {
        state: 2,
        cause: Cause::Syn as u8,
        segs: 1,
        srtt_us: 0,
        ..rto
    };
    let syn_ack = Retransmit {
        state: 12,
        cause: Cause::SynAck as u8,
        owner: Owner::zeroed(),
        ..syn
    };
    let failed = Retransmit {
        err: -105,
        cause: Cause::Tlp as u8,
        flow: flow6(),
        ..rto
    };
    bytes(&[rto, syn, syn_ack, failed])
}

fn connects() -> Vec<Vec<u8>> {
    let established = Connect {
        header: header::<Connect>(9),
        flow: flow4(),
        owner: owner(b"php-fpm"),
        latency_ns: 1_500_000,
        search_ns: 40_000,
        candidates: 17,
        syn_attempts: 1,
        stack: NO_STACK,
        outcome: Outcome::Established as u8,
        ..Connect::zeroed()
    };
    let no_port = Connect {
        flow: Flow {
            sport: [0; 2],
            ..flow4()
        },
        candidates: NOT_COUNTED,
        errno: -99,
        errno_source: ErrnoSource::Return as u8,
        syn_attempts: 0,
        outcome: Outcome::Failed as u8,
        ..established
    };
    let odd_errno = Connect {
        errno: -4095,
        errno_source: ErrnoSource::Socket as u8,
        ..no_port
    };
    let given_up = Connect {
        flow: flow_mapped(),
        outcome: Outcome::Aborted as u8,
        ..established
    };
    bytes(&[established, no_port, odd_errno, given_up])
}

fn listeners() -> Vec<Vec<u8>> {
    let full = Refusal {
        header: header::<Refusal>(11),
        flow: flow4(),
        owner: owner(b"gunicorn"),
        listener_addr: [0; 16],
        listener_port: 8000,
        listener_family: 2,
        stage: Stage::SynAcceptQueue as u32,
        accept_queue: 129,
        accept_limit: 128,
        syn_backlog: 4,
        syn_limit: 512,
        stack: NO_STACK,
        ..Refusal::zeroed()
    };
    let stages = Stage::ALL.iter().map(|stage| Refusal {
        stage: *stage as u32,
        ..full
    });
    bytes(&stages.collect::<Vec<_>>())
}

fn conntrack() -> Vec<Vec<u8>> {
    let tcp = TableFull {
        header: header::<TableFull>(13),
        flow: flow4(),
        errno: -12,
        stack: NO_STACK,
    };
    let udp = TableFull {
        flow: Flow {
            protocol: 17,
            ..flow6()
        },
        ..tcp
    };
    let rare = TableFull {
        flow: Flow {
            protocol: 250,
            ..flow4()
        },
        ..tcp
    };
    bytes(&[tcp, udp, rare])
}

fn resets() -> Vec<Vec<u8>> {
    let closed_port = Reset {
        header: header::<Reset>(15),
        flow: flow4(),
        idle_ns: NO_IDLE,
        lastrcv_ns: NO_IDLE,
        acked_ns: NO_IDLE,
        reason: 4,
        stack: NO_STACK,
        direction: Direction::Sent as u8,
        cause: resets::Cause::NoListener as u8,
        ..Reset::zeroed()
    };
    let after_idle_time = Reset {
        flow: flow6(),
        owner: owner(b"java"),
        age_ns: 7_200_000_000_000,
        idle_ns: 3_600_000_000_000,
        lastrcv_ns: 3_600_000_000_000,
        acked_ns: 3_600_000_000_000,
        reason: resets::NO_REASON,
        direction: Direction::Received as u8,
        cause: resets::Cause::Unknown as u8,
        state: 1,
        ..closed_port
    };
    let unread = Reset {
        flow: flow_mapped(),
        idle_ns: 0,
        lastrcv_ns: 2_000_000_000,
        acked_ns: 2_000_000_000,
        data: 512,
        direction: Direction::Sent as u8,
        cause: resets::Cause::UnreadData as u8,
        ..after_idle_time
    };
    bytes(&[closed_port, after_idle_time, unread])
}

fn lifetimes() -> Vec<Vec<u8>> {
    let orderly = Lifetime {
        header: header::<Lifetime>(17),
        flow: flow4(),
        owner: owner(b"curl"),
        duration_ns: 1_500_000_000,
        bytes_sent: 400,
        bytes_received: 10_000_000_000,
        segs_out: 3500,
        segs_in: 7000,
        retransmits: 2,
        srtt_us: 250,
        stack: NO_STACK,
        role: Role::Client as u8,
        closer: Closer::Local as u8,
        ending: Ending::Fin as u8,
        time_wait: 1,
        state: 5,
        ..Lifetime::zeroed()
    };
    let from_before = Lifetime {
        flow: flow6(),
        duration_ns: 0,
        role: Role::Server as u8,
        closer: Closer::Remote as u8,
        ending: Ending::Reset as u8,
        errno: -104,
        time_wait: 0,
        state: 1,
        ..orderly
    };
    let failed = Lifetime {
        flow: flow_mapped(),
        closer: Closer::Neither as u8,
        ending: Ending::Failed as u8,
        errno: -111,
        srtt_us: 0,
        time_wait: 0,
        state: 2,
        ..orderly
    };
    bytes(&[orderly, from_before, failed])
}

fn states() -> Vec<Vec<u8>> {
    let first = StateChange {
        header: header::<StateChange>(22),
        flow: flow4(),
        owner: owner(b"wget"),
        socket: 0xffff_9c4a_4f1b_c000,
        uid: 1000,
        old: 7,
        new: 2,
        stack: NO_STACK,
        ..StateChange::zeroed()
    };
    let next = StateChange {
        header: header::<StateChange>(23),
        flow: flow_mapped(),
        owner: Owner::zeroed(),
        in_state_ns: 1_234_567,
        uid: 0,
        old: 2,
        new: 1,
        ..first
    };
    bytes(&[first, next])
}

fn accepts() -> Vec<Vec<u8>> {
    let accepted = Accept {
        header: header::<Accept>(24),
        flow: flow6(),
        owner: owner(b"a\x1b[2Jb"),
        waited_ns: 1_500_000,
        accept_queue: 3,
        accept_limit: 128,
        seen: Seen::Accepted as u32,
        stack: NO_STACK,
    };
    let established = Accept {
        header: header::<Accept>(25),
        flow: flow4(),
        owner: Owner::zeroed(),
        waited_ns: 0,
        accept_queue: NO_QUEUE,
        seen: Seen::Established as u32,
        ..accepted
    };
    bytes(&[accepted, established])
}

fn time_wait() -> Vec<Vec<u8>> {
    let entered = TimeWait {
        header: header::<TimeWait>(19),
        flow: flow4(),
        owner: owner(b"wrk"),
        stack: NO_STACK,
        role: Role::Client as u8,
        outcome: time_wait::Outcome::Entered as u8,
        state: 6,
        ..TimeWait::zeroed()
    };
    let refused = TimeWait {
        flow: flow6(),
        role: Role::Server as u8,
        outcome: time_wait::Outcome::Refused as u8,
        state: 5,
        ..entered
    };
    let unknown = TimeWait {
        flow: flow_mapped(),
        owner: Owner::zeroed(),
        outcome: time_wait::Outcome::Unknown as u8,
        ..entered
    };
    bytes(&[entered, refused, unknown])
}

/// Totals as the kernel counts them.
pub(crate) fn counts() -> Vec<(CountKey, Count)> {
    let key = |kind: Kind, code| CountKey {
        kind: kind as u32,
        code,
        netns: 4_026_531_833,
        port: 443_u16.to_be_bytes(),
        ..CountKey::zeroed()
    };
    vec![
        (
            key(Kind::Retransmits, 1),
            Count {
                events: 2,
                weight: 40,
            },
        ),
        (
            key(Kind::Drops, 3),
            Count {
                events: 7,
                weight: 420,
            },
        ),
        (
            key(Kind::Drops, OTHER),
            Count {
                events: 9,
                weight: 540,
            },
        ),
    ]
}

/// A run that lost some, and could not see everything.
pub(crate) fn probe_states() -> Vec<Probe> {
    let attached = Hook {
        sees: "dropped packets",
        required: true,
        state: Ok("tp_btf"),
    };
    let missing = Hook {
        sees: "SYN-ACK retransmissions",
        required: false,
        state: Err("this kernel has no kprobes".to_owned()),
    };
    let counters = Counters {
        fired: 30,
        filtered: 10,
        delivered: 16,
        reserve_failed: 3,
        map_full: 1,
        ..Counters::ZERO
    };
    let probe = |name, weight, hooks, counters| Probe {
        name,
        about: "",
        weight,
        hooks,
        counters,
        decode_errors: 1,
        filtered_user: 4,
        unwritten: 0,
        missed: Some(2),
    };
    vec![
        probe("drops", "bytes", vec![attached.clone()], counters),
        probe(
            "retransmits",
            "segs",
            vec![attached, missing],
            Counters::ZERO,
        ),
    ]
}

/// Stacks whose frames try to break the formats.
pub(crate) fn stacks() -> Vec<(Vec<Arc<str>>, u64)> {
    let stack = |frames: &[&str]| frames.iter().map(|frame| Arc::from(*frame)).collect();
    vec![
        (
            stack(&["NO_SOCKET", "net_rx_action_[k]", "tcp_v4_rcv_[k]"]),
            5,
        ),
        (stack(&["NO_SOCKET", "net_rx_action_[k]"]), 2),
        (
            stack(&["a;b\n<script>alert(1)</script>", "tcp_v6_rcv_[k]"]),
            1,
        ),
    ]
}
