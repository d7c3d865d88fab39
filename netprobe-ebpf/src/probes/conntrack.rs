//! The conntrack table is full: a new connection gets no entry and its packet is dropped.
//!
//! The function lives in a module, so these are kprobes in every kernel.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{Flow, conntrack::TableFull},
};

use crate::{
    emit::{Filtered, Sighting, account, publish},
    filter, inflight,
    load::{Load, Probed},
    sock::join,
};

const ENOMEM: i64 = -12;

// match-proto:v6.12:net/netfilter/nf_conntrack_core.c:struct nf_conn *__nf_conntrack_alloc(struct net *net, const struct nf_conntrack_zone *zone, const struct nf_conntrack_tuple *orig, const struct nf_conntrack_tuple *repl, gfp_t gfp, u32 hash)
#[kprobe]
pub(crate) fn conntrack_enter(ctx: ProbeContext) -> u32 {
    inflight::enter(&ctx);
    0
}

#[kretprobe]
pub(crate) fn conntrack_exit(ctx: RetProbeContext) -> u32 {
    account(Kind::Conntrack, try_conntrack(&ctx));
    0
}

#[inline(always)]
fn try_conntrack(ctx: &RetProbeContext) -> Result<(), Filtered> {
    let arguments = inflight::leave(ctx);
    // ERR_PTR(-ENOMEM)
    if ctx.ret::<i64>() != ENOMEM {
        return Err(Filtered);
    }
    let mut flow = Flow::zeroed();
    if let Some([net, _zone, tuple, _reply]) = arguments {
        flow.netns = filter::netns(Probed, net);
        read_tuple(tuple, &mut flow);
    }
    if !filter::admits(&flow) {
        return Err(Filtered);
    }
    let key = CountKey {
        kind: Kind::Conntrack as u32,
        code: u32::from(flow.protocol),
        netns: flow.netns,
        port: flow.dport,
        any_port: 0,
        location: 0,
    };
    publish::<TableFull, _>(
        ctx,
        &Sighting {
            key,
            weight: 1,
            comm: [0; 16],
            flow: &flow,
            subject: (),
        },
        |record, stack| {
            record.flow = flow;
            record.errno = ENOMEM as i32;
            record.stack = stack;
        },
    );
    Ok(())
}

/// `struct nf_conntrack_tuple`, already in network byte order.
#[inline(always)]
fn read_tuple(tuple: u64, flow: &mut Flow) {
    flow.family = Probed.field(tuple, Field::TupleFamily);
    let protocol: u8 = Probed.field(tuple, Field::TupleProtocol);
    flow.protocol = u16::from(protocol);
    flow.saddr = join(Probed.field(tuple, Field::TupleSaddr));
    flow.daddr = join(Probed.field(tuple, Field::TupleDaddr));
    flow.sport = Probed.field(tuple, Field::TupleSport);
    flow.dport = Probed.field(tuple, Field::TupleDport);
}
