//! A connection goes to TIME_WAIT: a small socket takes its place, if there is room for one.
//!
//! The full socket never shows the state TIME_WAIT; it goes to CLOSE once the small one is made.
//! The return of `inet_twsk_alloc` tells whether it was. Without function probes the state change
//! shows the attempt, but not its result.

use aya_ebpf::{
    macros::{btf_tracepoint, fexit, kprobe, kretprobe},
    programs::{
        BtfTracePointContext, FExitContext, ProbeContext, RetProbeContext, tracing::StackIdContext,
    },
};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    record::Plain,
    records::{
        Flow,
        time_wait::{Outcome, TimeWait},
    },
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, publish},
    filter, inflight, lives,
    load::{Load, Probed, Typed},
    owners,
    probes::lifetimes::enters_time_wait,
    sock::{SOCK_DONE, Sock, TCP_CLOSE, TCP_CLOSING, TCP_FIN_WAIT2, TCP_TIME_WAIT},
};

// match-proto:v6.12:net/ipv4/inet_timewait_sock.c:struct inet_timewait_sock *inet_twsk_alloc(const struct sock *sk, struct inet_timewait_death_row *dr, const int state)
#[fexit(function = "inet_twsk_alloc")]
pub(crate) fn time_wait(ctx: FExitContext) -> i32 {
    let state: u32 = ctx.arg(2);
    let made: u64 = ctx.arg(3);
    on_alloc(Typed, &ctx, ctx.arg(0), state as u8, made != 0);
    0
}

#[kprobe]
pub(crate) fn time_wait_enter_k(ctx: ProbeContext) -> u32 {
    inflight::enter(&ctx);
    0
}

#[kretprobe]
pub(crate) fn time_wait_exit_k(ctx: RetProbeContext) -> u32 {
    if let Some([sk, _death_row, state, _]) = inflight::leave(&ctx) {
        on_alloc(Probed, &ctx, sk, state as u8, ctx.ret::<u64>() != 0);
    }
    0
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn time_wait_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let (old, new) = (old as u8, new as u8);
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        lives::track(Kind::TimeWait, sock, old, new);
        if new == TCP_CLOSE {
            on_close(&ctx, sock, old);
        }
    }
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn time_wait_gone(ctx: BtfTracePointContext) -> i32 {
    lives::forget(Kind::TimeWait, ctx.arg(0));
    0
}

/// A small socket was made for `sk`, or not.
#[inline(always)]
fn on_alloc<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, state: u8, is_made: bool) {
    let Some(sock) = Sock::new(load, sk).filter(|sock| sock.is_tcp()) else {
        return;
    };
    // So that the state change, which comes next, is not taken for another one.
    if let Some(life) = lives::entry(Kind::TimeWait, sock) {
        life.time_wait = 1;
    }
    let outcome = if is_made {
        Outcome::Entered
    } else {
        Outcome::Refused
    };
    account(Kind::TimeWait, report(ctx, sock, state, outcome));
}

/// The full socket is closed; if nothing else has seen why, it is told here.
#[inline(always)]
fn on_close(ctx: &BtfTracePointContext, sock: Sock<Typed>, old: u8) {
    if old != TCP_FIN_WAIT2 && old != TCP_CLOSING {
        return;
    }
    let is_told = lives::of(sock.address).is_some_and(|life| life.time_wait != 0);
    if is_told || sock.error() != 0 || !enters_time_wait(sock, old) {
        return;
    }
    let state = if old == TCP_CLOSING || sock.flags() & SOCK_DONE != 0 {
        TCP_TIME_WAIT
    } else {
        TCP_FIN_WAIT2
    };
    account(Kind::TimeWait, report(ctx, sock, state, Outcome::Unknown));
}

#[inline(always)]
fn report<L: Load, C: StackIdContext>(
    ctx: &C,
    sock: Sock<L>,
    state: u8,
    outcome: Outcome,
) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    sock.last_flow(&mut flow);
    if !filter::admits(&flow) || !filter::admits_state(state) || !cgroups::admits(Some(sock)) {
        return Err(Filtered);
    }
    let role = lives::role(sock, lives::of(sock.address).as_deref());
    let key = CountKey {
        kind: Kind::TimeWait as u32,
        code: outcome as u32,
        netns: flow.netns,
        port: lives::service_port(&flow, role),
        any_port: 0,
        location: u64::from(role),
    };
    let sighting = Sighting {
        key,
        weight: 1,
        comm: [0; 16],
        flow: &flow,
        subject: Some(sock),
    };
    publish::<TimeWait, _>(ctx, &sighting, |record, stack| {
        record.flow = flow;
        owners::of(sock, &mut record.owner);
        record.role = role;
        record.outcome = outcome as u8;
        record.state = state;
        record.stack = stack;
    });
    Ok(())
}
