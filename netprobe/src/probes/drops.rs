//! A packet of TCP was thrown away inside this machine, and the kernel says why and where.
//!
//! It misses what the kernel does not call a drop: SYNs that a full listener refuses are freed
//! as if they had been served; see the `listeners` probe.

use netprobe_common::{
    counters::{CountKey, OTHER},
    header::Kind,
    offsets::Field,
    records::drops::{Drop, DropPacket, NO_REASON},
};

use super::{
    CGROUP, Hook, Keeps, KernelTest, ProbeSpec, Via, cgroup, family, flow, owner, record, tcp_state,
};
use crate::{
    decode::{DecodeError, Names},
    report::{Column, Value},
};

/// The probe.
pub static SPEC: ProbeSpec = ProbeSpec {
    kind: Kind::Drops,
    about: "TCP packets that the kernel threw away: reason, place, connection",
    hooks: &[
        Hook {
            sees: "dropped packets",
            required: true,
            only_remembers: false,
            module: None,
            ways: &[&[Via::TpBtf.on("kfree_skb", "drops")]],
        },
        Hook {
            sees: "who opens and closes connections",
            required: false,
            only_remembers: true,
            module: None,
            ways: &[&[
                Via::TpBtf.on("inet_sock_set_state", "drops_state"),
                Via::TpBtf.on("tcp_destroy_sock", "drops_gone"),
            ]],
        },
    ],
    needs: &[Field::SkbProtocol, Field::SkbHead, Field::SkbNetworkHeader],
    keeps: Keeps::Owners,
    columns: &[
        Column::number("pid", "PID", 7, "process that owns the socket"),
        Column::text("comm", "COMM", 15, "name of that process"),
        Column::text("saddr", "SADDR", 15, "source address of the packet"),
        Column::number("sport", "SPORT", 5, "source port of the packet; of its fragments only the first has one"),
        Column::text("daddr", "DADDR", 15, "destination address of the packet"),
        Column::number("dport", "DPORT", 5, "destination port of the packet"),
        Column::text("state", "STATE", 9, "TCP state of the socket, as in ss(8)"),
        Column::text("flags", "FLAGS", 7, "TCP flags of the packet"),
        Column::text(
            "reason",
            "REASON",
            20,
            "why, as the kernel names it; QUEUE_PURGE is what a closed socket still had in its queue, where a clean close \
             leaves a FIN: no loss",
        ),
        Column::text("location", "LOCATION", 28, "function that dropped it"),
        Column::text("iface", "IFACE", 10, "interface it came from or went to").wide(),
        Column::number("netns", "NETNS", 10, "network namespace (inode number)").wide(),
        CGROUP,
        Column::number(
            "len",
            "LEN",
            6,
            "bytes of the packet from its IP header on, or from that of TCP where the other was taken off already",
        )
        .wide(),
        Column::number(
            "reason_code",
            "CODE",
            6,
            "number of the reason, which differs between kernels",
        )
        .hidden(),
        Column::number("seq", "SEQ", 10, "TCP sequence number").hidden(),
        Column::text("family", "FAMILY", 11, "ipv4, ipv6 or ipv4-mapped").hidden(),
        Column::number("ifindex", "IFINDEX", 7, "index of the interface").hidden(),
        Column::number("ino", "INODE", 8, "inode number of the socket").hidden(),
        Column::text(
            "stack",
            "STACK",
            0,
            "kernel functions that led here, innermost first",
        )
        .hidden(),
    ],
    kernel_tests: &[
        KernelTest::State,
        KernelTest::Reason,
        KernelTest::Interface,
        KernelTest::Cgroup,
    ],
    weight: "bytes",
    decode,
    group,
    code,
    oracles: &[],
};

const WITH_PACKET: usize = size_of::<DropPacket>();

/// The IP and TCP headers of the packet, if the record has it.
pub(super) fn packet(bytes: &[u8]) -> &[u8] {
    let head = match bytes.len() {
        WITH_PACKET => &bytes[size_of::<Drop>()..],
        _ => return &[],
    };
    let ip = match head[0] >> 4 {
        4 => usize::from(head[0] & 0xf) * 4,
        6 => 40,
        _ => return &[],
    };
    // TCP need not follow an IPv6 header at once; the shortest TCP header is there in any case.
    let words = head.get(ip + 12).map_or(0, |byte| usize::from(byte >> 4));
    let length = (ip + words.max(5) * 4).min(head.len());
    &head[..length]
}

fn decode(bytes: &[u8], names: &mut dyn Names, values: &mut Vec<Value>) -> Result<(), DecodeError> {
    // With a packet, the event comes first.
    let bytes = match bytes.len() {
        WITH_PACKET => &bytes[..size_of::<Drop>()],
        _ => bytes,
    };
    let drop: Drop = record(bytes)?;
    let [pid, comm, ino] = owner(&drop.owner, names);
    values.extend([pid, comm]);
    let known = |value| {
        if drop.is_later == 0 {
            value
        } else {
            Value::Unknown
        }
    };
    let [saddr, sport, daddr, dport] = flow(&drop.flow);
    values.extend([
        saddr,
        known(sport),
        daddr,
        known(dport),
        tcp_state(drop.state),
        known(Value::TcpFlags(drop.tcp_flags)),
        code(drop.reason, names),
        names.symbol(drop.location),
        Value::name(drop.iface),
        Value::nonzero(drop.flow.netns),
        cgroup(&drop.owner, names),
        Value::Unsigned(u64::from(drop.len)),
        match drop.reason {
            NO_REASON => Value::Unknown,
            reason => Value::Unsigned(u64::from(reason)),
        },
        known(Value::Unsigned(u64::from(drop.seq))),
        family(&drop.flow),
        Value::nonzero(drop.flow.ifindex),
        ino,
        names.stack(drop.stack),
    ]);
    Ok(())
}

fn group(key: &CountKey, names: &mut dyn Names) -> Vec<(&'static str, Value)> {
    vec![
        ("reason", code(key.code, names)),
        (
            "location",
            if key.location == 0 {
                Value::Unknown
            } else {
                names.symbol(key.location)
            },
        ),
        // No packet is for port 0: that of a later fragment is not known.
        ("dport", Value::nonzero(u16::from_be_bytes(key.port))),
        ("netns", Value::nonzero(key.netns)),
    ]
}

fn code(code: u32, names: &mut dyn Names) -> Value {
    match code {
        NO_REASON => Value::Unknown,
        OTHER => Value::Word("other"),
        code => names.drop_reason(code),
    }
}
