//! A socket goes from one TCP state to another.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{Flow, states::StateChange},
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, now, publish},
    filter, lives,
    load::{Load, Typed},
    maps::{STATES, value},
    owners,
    sock::{Sock, TCP_CLOSE},
};

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn states(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let (old, new) = (old as u8, new as u8);
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        lives::track(Kind::States, sock, old, new);
        let in_state_ns = clock(sock.address, new);
        account(
            Kind::States,
            try_states(&ctx, sock, (old, new), in_state_ns),
        );
    }
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn states_gone(ctx: BtfTracePointContext) -> i32 {
    lives::forget(Kind::States, ctx.arg(0));
    0
}

/// Nanoseconds that the socket was in its old state, and a new beginning; 0 is unknown.
#[inline(always)]
fn clock(sk: u64, new: u8) -> u64 {
    let now = now();
    let since = value(STATES.get_ptr_mut(sk)).map_or(0, |since| now - *since);
    if new == TCP_CLOSE {
        let _unknown = STATES.remove(sk);
    } else {
        // Full: the map evicts by itself.
        let _evicting = STATES.insert(sk, now, 0);
    }
    since
}

#[inline(always)]
fn try_states(
    ctx: &BtfTracePointContext,
    sock: Sock<Typed>,
    (old, new): (u8, u8),
    in_state_ns: u64,
) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    sock.last_flow(&mut flow);
    if !filter::admits(&flow) || !filter::admits_state(new) || !cgroups::admits(Some(sock)) {
        return Err(Filtered);
    }
    let life = lives::of(sock.address);
    let role = lives::role(sock, life.as_deref());
    let opened_ns = life.map_or(0, |life| life.start_ns);
    let key = CountKey {
        kind: Kind::States as u32,
        code: u32::from(new),
        netns: flow.netns,
        port: lives::service_port(&flow, role),
        any_port: 0,
        location: u64::from(old),
    };
    let sighting = Sighting {
        key,
        weight: in_state_ns,
        comm: [0; 16],
        flow: &flow,
        subject: Some(sock),
    };
    publish::<StateChange, _>(ctx, &sighting, |record, stack| {
        record.flow = flow;
        owners::of(sock, &mut record.owner);
        record.socket = sock.address;
        record.in_state_ns = in_state_ns;
        record.opened_ns = opened_ns;
        record.uid = Typed.field(sock.address, Field::SkUid);
        record.stack = stack;
        record.old = old;
        record.new = new;
        record.role = role;
    });
    Ok(())
}
