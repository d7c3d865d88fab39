//! A packet is thrown away. The packet's own headers name the connection, so that drops before
//! any socket was found (no listener, netfilter, queues) are seen like the others.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{
        Flow,
        drops::{Drop, DropPacket, NO_REASON},
    },
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, publish},
    filter,
    load::{Load, Probed, Typed, has},
    maps::{CONFIG, frozen},
    owners, packet,
    probes::arguments::argument,
    sock::{AF_INET, AF_INET6, Sock},
};

// match-proto:v6.12:include/trace/events/skb.h:kfree_skb(struct sk_buff *skb, void *location, enum skb_drop_reason reason, struct sock *rx_sk)
#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn drops(ctx: BtfTracePointContext) -> i32 {
    account(Kind::Drops, try_drops(&ctx));
    0
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn drops_state(ctx: BtfTracePointContext) -> i32 {
    owners::on_state(Kind::Drops, &ctx);
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn drops_gone(ctx: BtfTracePointContext) -> i32 {
    owners::forget(Kind::Drops, ctx.arg(0));
    0
}

#[inline(always)]
fn try_drops(ctx: &BtfTracePointContext) -> Result<(), Filtered> {
    let reason = reason(ctx);
    if !filter::admits_reason(reason) {
        return Err(Filtered);
    }
    let skb: u64 = ctx.arg(0);
    let mut flow = Flow::zeroed();
    let tcp = packet::read(Typed, skb, &mut flow).ok_or(Filtered)?;
    let sock = socket(ctx, skb);
    let place = locate(&mut flow, sock, skb);
    let state = sock.map_or(0, Sock::state);
    let subject = sock.filter(|_| Sock::<Typed>::is_full(state));
    if !filter::admits(&flow)
        || !filter::admits_state(state)
        || !cgroups::admits(subject)
        || !filter::admits_interface(|| place.interface())
    {
        return Err(Filtered);
    }

    let location: u64 = ctx.arg(1);
    let len = packet::length(Typed, skb);
    let key = CountKey {
        kind: Kind::Drops as u32,
        code: reason,
        netns: flow.netns,
        port: flow.dport,
        any_port: 0,
        location,
    };
    let sighting = Sighting {
        key,
        weight: u64::from(len),
        comm: [0; 16],
        flow: &flow,
        subject,
    };
    let fill = |record: &mut Drop, stack: i32| {
        record.flow = flow;
        record.location = location;
        record.reason = reason;
        record.len = len;
        record.seq = tcp.seq;
        record.tcp_flags = tcp.flags;
        record.is_later = tcp.is_later;
        record.stack = stack;
        record.iface = place.interface();
        record.state = state;
        if let Some(sock) = subject {
            owners::of(sock, &mut record.owner);
        }
    };
    if frozen(&CONFIG.packets) == 0 {
        publish::<Drop, _>(ctx, &sighting, fill);
    } else {
        publish::<DropPacket, _>(ctx, &sighting, |record, stack| {
            fill(&mut record.drop, stack);
            packet::copy(Typed, skb, &mut record.head);
        });
    }
    Ok(())
}

/// The TCP socket that the packet belonged to: as owner of the buffer, or as the receiver that
/// newer kernels pass along.
#[inline(always)]
fn socket(ctx: &BtfTracePointContext, skb: u64) -> Option<Sock<Typed>> {
    let owner: u64 = Typed.field(skb, Field::SkbSk);
    if let Some(sock) = Sock::new(Typed, owner).filter(|sock| is_inet(*sock)) {
        return Some(sock);
    }
    if !has(Field::ArgDropSock) {
        return None;
    }
    Sock::new(Typed, argument(ctx, Field::ArgDropSock)).filter(|sock| is_inet(*sock))
}

/// Buffers of packet sockets and tunnels carry TCP too, but their socket has no TCP state.
#[inline(always)]
fn is_inet(sock: Sock<Typed>) -> bool {
    let family = sock.family();
    let is_small = !Sock::<Typed>::is_full(sock.state());
    (family == AF_INET || family == AF_INET6) && (is_small || sock.is_tcp())
}

/// The device that a packet came from or goes to.
#[derive(Clone, Copy)]
enum Place {
    /// Not known.
    Nowhere,
    /// The packet's own.
    Device(u64),
    /// That of its route, whose pointer has no type.
    Route(u64),
}

impl Place {
    /// The interface's name; empty where none is known.
    #[inline(always)]
    fn interface(self) -> [u8; 16] {
        let name = u64::from(crate::load::offset_of(Field::DevName));
        match self {
            Self::Nowhere => [0; 16],
            Self::Device(device) => {
                crate::sock::join([Typed.at(device, name), Typed.at(device, name + 8)])
            }
            Self::Route(device) => Probed.at(device, name),
        }
    }
}

/// Namespace and interface. The socket knows its namespace for sure; `skb->dev` shares its
/// place with queue links while the buffer sits in a socket's queue. But until `ip_rcv` a packet that came over
/// a veth pair still has the socket of its sender, in another namespace: there the interface is the one
/// that received it.
#[inline(always)]
fn locate(flow: &mut Flow, sock: Option<Sock<Typed>>, skb: u64) -> Place {
    let device: u64 = Typed.field(skb, Field::SkbDev);
    let Some(sock) = sock else {
        if device == 0 {
            return route(flow, skb);
        }
        return stand_at(flow, device);
    };
    sock.adopt(flow);
    flow.netns = sock.netns();
    flow.ifindex = Typed.field(skb, Field::SkbIif);
    if flow.ifindex == 0 {
        return leave(flow, sock, skb, device);
    }
    if device != 0 && Typed.field::<u32>(device, Field::DevIfindex) == flow.ifindex {
        return stand_at(flow, device);
    }
    Place::Nowhere
}

/// A packet that its device names the place of.
#[inline(always)]
fn stand_at(flow: &mut Flow, device: u64) -> Place {
    let net: u64 = Typed.field(device, Field::DevNet);
    let netns = filter::netns(Typed, net);
    if netns != 0 {
        flow.netns = netns;
    }
    flow.ifindex = Typed.field(device, Field::DevIfindex);
    Place::Device(device)
}

/// A packet on its way out of a socket: at the queues it has a device, of the socket's namespace like its route, and
/// before that what stands there may be a queue link.
#[inline(always)]
fn leave(flow: &mut Flow, sock: Sock<Typed>, skb: u64, device: u64) -> Place {
    if device != 0 && Typed.field::<u64>(device, Field::DevNet) == sock.net() {
        flow.ifindex = Typed.field(device, Field::DevIfindex);
        return Place::Device(device);
    }
    route(flow, skb)
}

/// A packet that the IP layer has a route for and has not given to its device yet, as in the output chains of
/// netfilter. Answers of the kernel over IPv6 have no socket there either.
#[inline(always)]
fn route(flow: &mut Flow, skb: u64) -> Place {
    /// `SKB_DST_NOREF`
    const BORROWED: u64 = 1;
    let route: u64 = Typed.field(skb, Field::SkbDst);
    let device: u64 = Probed.field(route & !BORROWED, Field::DstDev);
    let net: u64 = Probed.field(device, Field::DevNet);
    let netns = filter::netns(Probed, net);
    // In a socket's queue a link may stand there too.
    if netns == 0 || (flow.netns != 0 && flow.netns != netns) {
        return Place::Nowhere;
    }
    flow.netns = netns;
    flow.ifindex = Probed.field(device, Field::DevIfindex);
    Place::Route(device)
}

#[inline(always)]
fn reason(ctx: &BtfTracePointContext) -> u32 {
    if has(Field::ArgDropReason) {
        argument(ctx, Field::ArgDropReason) as u32
    } else {
        NO_REASON
    }
}
