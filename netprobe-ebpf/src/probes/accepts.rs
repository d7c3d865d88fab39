//! A connection comes in, and a process takes it up.
//!
//! The return of `inet_csk_accept` tells who, from which queue. A call that waits since before we came
//! returns without us; `security_sock_graft`, which comes after the wait, tells of what it accepts.
//! Where functions cannot be probed, the end of the handshake is reported instead, which happens in
//! softirq and says nothing of a process.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{
        BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext,
        tracing::StackIdContext,
    },
};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{
        Flow, Owner, Role,
        accepts::{Accept, NO_QUEUE, Seen},
    },
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, publish},
    filter, inflight, lives,
    load::{Load, Probed, Typed},
    maps::{ACCEPTED, value},
    sock::{Sock, TCP_ESTABLISHED, TCP_SYN_RECV},
    subgroups::Subject,
    task,
};

// match-proto:v6.6:net/ipv4/inet_connection_sock.c:struct sock *inet_csk_accept(struct sock *sk, int flags, int *err, bool kern)
#[fexit(function = "inet_csk_accept")]
pub(crate) fn accepts_four(ctx: FExitContext) -> i32 {
    on_accept(Typed, &ctx, ctx.arg(0), ctx.arg(4));
    0
}

// match-proto:v6.12:net/ipv4/inet_connection_sock.c:struct sock *inet_csk_accept(struct sock *sk, struct proto_accept_arg *arg)
#[fexit(function = "inet_csk_accept")]
pub(crate) fn accepts_two(ctx: FExitContext) -> i32 {
    on_accept(Typed, &ctx, ctx.arg(0), ctx.arg(2));
    0
}

#[kprobe]
pub(crate) fn accepts_enter_k(ctx: ProbeContext) -> u32 {
    inflight::enter(&ctx);
    0
}

#[kretprobe]
pub(crate) fn accepts_exit_k(ctx: RetProbeContext) -> u32 {
    if let Some([listener, ..]) = inflight::leave(&ctx) {
        on_accept(Probed, &ctx, listener, ctx.ret());
    }
    0
}

// match-proto:v6.12:security/security.c:void security_sock_graft(struct sock *sk, struct socket *parent)
#[fentry(function = "security_sock_graft")]
pub(crate) fn accepts_graft(ctx: FEntryContext) -> i32 {
    on_graft(Typed, &ctx, ctx.arg(0));
    0
}

#[kprobe]
pub(crate) fn accepts_graft_k(ctx: ProbeContext) -> u32 {
    on_graft(Probed, &ctx, ctx.arg(0).unwrap_or(0));
    0
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn accepts_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        lives::track(Kind::Accepts, sock, old as u8, new as u8);
    }
    0
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn accepts_established(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let is_established = old as u8 == TCP_SYN_RECV && new as u8 == TCP_ESTABLISHED;
    if is_established
        && let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp())
        && !is_connect(sock)
    {
        account(Kind::Accepts, report(&ctx, sock, None, Seen::Established));
    }
    0
}

/// A SYN that crosses another leads over SYN_RECV too (RFC 9293, 3.5): nobody accepts what it connects.
#[inline(always)]
fn is_connect(sock: Sock<Typed>) -> bool {
    lives::of(sock.address).is_some_and(|life| life.role == Role::Client as u8)
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn accepts_gone(ctx: BtfTracePointContext) -> i32 {
    lives::forget(Kind::Accepts, ctx.arg(0));
    0
}

#[inline(always)]
fn on_accept<L: Load, C: StackIdContext>(load: L, ctx: &C, listener: u64, sk: u64) {
    // An empty queue, or a signal while waiting: nothing was accepted.
    let Some(sock) = Sock::new(load, sk) else {
        return;
    };
    // Full: the map evicts by itself.
    let _evicting = ACCEPTED.insert(bpf_get_current_pid_tgid(), sk, 0);
    if sock.is_tcp() {
        let listener = Sock::new(load, listener);
        account(Kind::Accepts, report(ctx, sock, listener, Seen::Accepted));
    }
}

/// The running task gives a file to what it accepts, within the call of `inet_accept`.
#[inline(always)]
fn on_graft<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64) {
    let task = bpf_get_current_pid_tgid();
    let reported = value(ACCEPTED.get_ptr_mut(task)).map(|sk| *sk);
    if reported.is_some() {
        let _gone = ACCEPTED.remove(task);
    }
    // What was not accepted is no socket of TCP here; one of MPTCP is reported by its first subflow.
    if reported != Some(sk)
        && let Some(sock) = Sock::new(load, sk).filter(|sock| sock.is_tcp())
    {
        account(Kind::Accepts, report(ctx, sock, None, Seen::Accepted));
    }
}

/// Who accepts: the running task, once it does.
struct Acceptor<L> {
    sock: Sock<L>,
    seen: Seen,
}

impl<L: Load> Subject for Acceptor<L> {
    #[inline(always)]
    fn owner(&self, owner: &mut Owner) {
        if matches!(self.seen, Seen::Accepted) {
            owner.pid = task::pid();
            owner.comm = task::process_comm();
        }
        owner.cgroup = self.sock.cgroup();
    }
}

#[inline(always)]
fn report<L: Load, C: StackIdContext>(
    ctx: &C,
    sock: Sock<L>,
    listener: Option<Sock<L>>,
    seen: Seen,
) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    sock.flow(&mut flow);
    if !filter::admits(&flow) || !cgroups::admits(Some(sock)) {
        return Err(Filtered);
    }
    let waited_ns = match seen {
        Seen::Accepted => lives::age_ns(lives::of(sock.address).as_deref()),
        Seen::Established => 0,
    };
    let key = CountKey {
        kind: Kind::Accepts as u32,
        code: seen as u32,
        netns: flow.netns,
        port: flow.sport,
        any_port: 0,
        location: 0,
    };
    let sighting = Sighting {
        key,
        weight: waited_ns,
        comm: [0; 16],
        flow: &flow,
        subject: Acceptor { sock, seen },
    };
    publish::<Accept, _>(ctx, &sighting, |record, stack| {
        record.flow = flow;
        Acceptor { sock, seen }.owner(&mut record.owner);
        record.waited_ns = waited_ns;
        record.accept_queue = NO_QUEUE;
        if let Some(listener) = listener {
            let (load, address) = (listener.load, listener.address);
            record.accept_queue = load.field(address, Field::SkAckBacklog);
            record.accept_limit = load.field(address, Field::SkMaxAckBacklog);
        } else {
            // A copy of its listener's.
            record.accept_limit = sock.load.field(sock.address, Field::SkMaxAckBacklog);
        }
        record.stack = stack;
        record.seen = seen as u32;
    });
    Ok(())
}
