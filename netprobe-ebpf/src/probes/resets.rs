//! A RST is sent, with or without a socket, or a socket receives one.
//!
//! From 6.10 on one tracepoint sees every RST that TCP sends and says why. Before, it sees only
//! those of full sockets; answers to packets without a connection need function probes.

use aya_ebpf::{
    macros::{btf_tracepoint, fentry, kprobe},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, tracing::StackIdContext},
};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{
        Flow, Role,
        resets::{Cause, Direction, NO_IDLE, NO_REASON, Reset},
    },
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, now, publish, since},
    filter, lives,
    load::{Load, Probed, Typed, has},
    owners, packet,
    probes::arguments::argument,
    sock::{
        AF_INET, AF_INET6, SOCK_DEAD, SOCK_DONE, SOCK_LINGER, Sock, TCP_CLOSE, TCP_CLOSING,
        TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_LISTEN, TCP_NEW_SYN_RECV, TCP_SYN_RECV, TCP_SYN_SENT,
        TCP_TIME_WAIT,
    },
};

const ECONNABORTED: i32 = -103;
/// TCP header flags.
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// `SHUTDOWN_MASK`: both directions, which `close` begins with.
const SHUTDOWN_MASK: u8 = 3;

// match-proto:v6.12:include/trace/events/tcp.h:tcp_send_reset(const struct sock *sk, const struct sk_buff *skb__nullable, const enum sk_rst_reason reason)
#[btf_tracepoint(function = "tcp_send_reset")]
pub(crate) fn resets_sent(ctx: BtfTracePointContext) -> i32 {
    let reason = if has(Field::ArgResetReason) {
        argument(&ctx, Field::ArgResetReason) as u32
    } else {
        NO_REASON
    };
    if let Some(sock) = full(Typed, ctx.arg(0)) {
        account(Kind::Resets, try_sent(&ctx, sock, ctx.arg(1), reason));
    }
    0
}

/// The same where the kernel passes a reason, as only kernels do that come here without a socket
/// too; others refuse this program, because they pass no third argument.
#[btf_tracepoint(function = "tcp_send_reset")]
pub(crate) fn resets_answer(ctx: BtfTracePointContext) -> i32 {
    let reason: u64 = ctx.arg(2);
    on_answer(Typed, &ctx, ctx.arg(0), ctx.arg(1), reason as u32);
    0
}

// match-proto:v6.1:net/ipv4/tcp_ipv4.c:void tcp_v4_send_reset(const struct sock *sk, struct sk_buff *skb)
#[fentry(function = "tcp_v4_send_reset")]
pub(crate) fn resets_answer4(ctx: FEntryContext) -> i32 {
    on_answer(Typed, &ctx, ctx.arg(0), ctx.arg(1), NO_REASON);
    0
}

// match-proto:v6.1:net/ipv6/tcp_ipv6.c:void tcp_v6_send_reset(const struct sock *sk, struct sk_buff *skb)
#[fentry(function = "tcp_v6_send_reset")]
pub(crate) fn resets_answer6(ctx: FEntryContext) -> i32 {
    on_answer(Typed, &ctx, ctx.arg(0), ctx.arg(1), NO_REASON);
    0
}

#[kprobe]
pub(crate) fn resets_answer_k(ctx: ProbeContext) -> u32 {
    let (sk, skb) = (ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    on_answer(Probed, &ctx, sk, skb, NO_REASON);
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_receive_reset(struct sock *sk)
#[btf_tracepoint(function = "tcp_receive_reset")]
pub(crate) fn resets_received(ctx: BtfTracePointContext) -> i32 {
    if let Some(sock) = full(Typed, ctx.arg(0)) {
        account(Kind::Resets, try_received(&ctx, sock));
    }
    0
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn resets_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        lives::track(Kind::Resets, sock, old as u8, new as u8);
    }
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn resets_gone(ctx: BtfTracePointContext) -> i32 {
    lives::forget(Kind::Resets, ctx.arg(0));
    0
}

/// The socket at `sk` if it is there and in full.
///
/// VERIFIER: 6.12 takes the pointer for never null and drops the test for it; what is read
/// through a null pointer is zero there, and no socket is of family zero.
#[inline(always)]
fn full<L: Load>(load: L, sk: u64) -> Option<Sock<L>> {
    Sock::new(load, sk).filter(|sock| is_inet(*sock) && Sock::<L>::is_full(sock.state()))
}

#[inline(always)]
fn is_inet<L: Load>(sock: Sock<L>) -> bool {
    let family = sock.family();
    family == AF_INET || family == AF_INET6
}

/// A RST from a full socket; `skb` is the packet that it answers, or null.
#[inline(always)]
fn try_sent(
    ctx: &BtfTracePointContext,
    sock: Sock<Typed>,
    skb: u64,
    reason: u32,
) -> Result<(), Filtered> {
    let current = sock.state();
    let mut flow = Flow::zeroed();
    if current == TCP_LISTEN {
        // The listener's own peer is nobody; it sends nothing but answers.
        if skb == 0 {
            return Err(Filtered);
        }
        packet::read(Typed, skb, &mut flow).ok_or(Filtered)?;
        turn(&mut flow);
        sock.adopt(&mut flow);
        flow.netns = sock.netns();
    } else {
        sock.last_flow(&mut flow);
    }
    let state = last_state(sock, current);
    let cause = if skb == 0 {
        cause_of_active(sock, current)
    } else {
        cause_of_answer(current)
    };
    let end = End {
        direction: Direction::Sent,
        cause,
        state,
        reason,
        data: if skb == 0 {
            unread(sock)
        } else {
            payload(Typed, skb)
        },
    };
    report(ctx, Some(sock), &flow, &end)
}

#[inline(always)]
fn try_received(ctx: &BtfTracePointContext, sock: Sock<Typed>) -> Result<(), Filtered> {
    let state = sock.state();
    let mut flow = Flow::zeroed();
    sock.last_flow(&mut flow);
    let end = End {
        direction: Direction::Received,
        cause: if state == TCP_SYN_SENT {
            Cause::Refused
        } else {
            Cause::Unknown
        },
        state,
        reason: NO_REASON,
        data: unacknowledged(sock, state),
    };
    report(ctx, Some(sock), &flow, &end)
}

/// A packet is answered by a RST. If a full socket does so, [`resets_sent`] has it.
#[inline(always)]
fn on_answer<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, skb: u64, reason: u32) {
    let sock = Sock::new(load, sk).filter(|sock| is_inet(*sock));
    let state = sock.map_or(0, Sock::state);
    if sock.is_some() && Sock::<L>::is_full(state) {
        return;
    }
    let outcome = try_answer(ctx, load, sock, skb, state, reason);
    account(Kind::Resets, outcome);
}

#[inline(always)]
fn try_answer<L: Load, C: StackIdContext>(
    ctx: &C,
    load: L,
    sock: Option<Sock<L>>,
    skb: u64,
    state: u8,
    reason: u32,
) -> Result<(), Filtered> {
    if skb == 0 {
        return Err(Filtered);
    }
    let mut flow = Flow::zeroed();
    let tcp = packet::read(load, skb, &mut flow).ok_or(Filtered)?;
    // The function is entered for a RST too, and sends nothing then.
    if tcp.flags & RST != 0 {
        return Err(Filtered);
    }
    turn(&mut flow);
    flow.netns = if let Some(sock) = sock {
        sock.adopt(&mut flow);
        sock.netns()
    } else {
        let device: u64 = load.field(skb, Field::SkbDev);
        filter::netns(load, load.field(device, Field::DevNet))
    };
    let data = payload(load, skb);
    let cause = match state {
        // Of those that the application has closed as well, most wait for the peer's FIN here.
        TCP_TIME_WAIT if data > 0 => Cause::DataAfterClose,
        TCP_TIME_WAIT => Cause::TimeWait,
        TCP_NEW_SYN_RECV => Cause::UnexpectedAck,
        _ if tcp.flags & (SYN | ACK) == SYN => Cause::NoListener,
        _ => Cause::NoConnection,
    };
    let end = End {
        direction: Direction::Sent,
        cause,
        state,
        reason,
        data,
    };
    report::<L, C>(ctx, None, &flow, &end)
}

/// Makes the packet's receiver the source.
#[inline(always)]
fn turn(flow: &mut Flow) {
    core::mem::swap(&mut flow.saddr, &mut flow.daddr);
    core::mem::swap(&mut flow.sport, &mut flow.dport);
}

/// How it ended.
struct End {
    direction: Direction,
    cause: Cause,
    state: u8,
    reason: u32,
    data: u32,
}

/// Bytes of data that have come and that the application has not read. A FIN takes a sequence number as well.
#[inline(always)]
fn unread(sock: Sock<Typed>) -> u32 {
    let next: u32 = sock.tcp_field(Field::TcpRcvNxt);
    let read: u32 = sock.tcp_field(Field::TcpCopiedSeq);
    let fin = u32::from(sock.flags() & SOCK_DONE != 0);
    next.wrapping_sub(read).saturating_sub(fin)
}

/// Bytes of data that were written and that the peer has not acknowledged. A FIN takes a sequence number as well.
#[inline(always)]
fn unacknowledged(sock: Sock<Typed>, state: u8) -> u32 {
    let written: u32 = sock.tcp_field(Field::TcpWriteSeq);
    let acknowledged: u32 = sock.tcp_field(Field::TcpSndUna);
    let bytes = written.wrapping_sub(acknowledged);
    match state {
        TCP_SYN_SENT | TCP_SYN_RECV => 0,
        TCP_FIN_WAIT1 | TCP_CLOSING | TCP_LAST_ACK => bytes.saturating_sub(1),
        _ => bytes,
    }
}

/// Bytes of data in a packet that came, as TCP has noted its sequence numbers, of which SYN and FIN take one each.
#[inline(always)]
fn payload<L: Load>(load: L, skb: u64) -> u32 {
    let first: u32 = load.field(skb, Field::SkbTcpSeq);
    let end: u32 = load.field(skb, Field::SkbTcpEndSeq);
    let flags: u8 = load.field(skb, Field::SkbTcpFlags);
    let marks = u32::from(flags & FIN != 0) + u32::from(flags & SYN != 0);
    end.wrapping_sub(first).wrapping_sub(marks)
}

/// The state before the socket was closed, which comes before the RST; 0 if it is forgotten.
#[inline(always)]
fn last_state(sock: Sock<Typed>, current: u8) -> u8 {
    if current != TCP_CLOSE {
        return current;
    }
    match lives::last(sock) {
        Some(life) if life.last_state != 0 => life.last_state as u8,
        _ => 0,
    }
}

/// Why a socket in `state` answers a packet with a RST. Only late data is answered by one that is
/// closed, and destroyed by then.
#[inline(always)]
fn cause_of_answer(state: u8) -> Cause {
    match state {
        TCP_LISTEN | TCP_SYN_SENT | TCP_SYN_RECV => Cause::UnexpectedAck,
        TCP_CLOSE => Cause::DataAfterClose,
        _ => Cause::Unknown,
    }
}

/// Why a socket sends a RST of its own accord: each caller of `tcp_send_active_reset` leaves the
/// socket in another condition.
#[inline(always)]
fn cause_of_active(sock: Sock<Typed>, current: u8) -> Cause {
    let flags = sock.flags();
    if flags & SOCK_DEAD != 0 {
        return Cause::Orphan;
    }
    if sock.is_detached() {
        return Cause::ListenerClosed;
    }
    if current != TCP_CLOSE {
        let probes: u8 = sock.tcp_field(Field::IcskProbesOut);
        return if sock.error() == ECONNABORTED || probes == 0 {
            Cause::Killed
        } else {
            Cause::Timeout
        };
    }
    let shutdown: u8 = Typed.field(sock.address, Field::SkShutdown);
    let linger: u32 = Typed.field(sock.address, Field::SkLingertime);
    if shutdown & SHUTDOWN_MASK != SHUTDOWN_MASK {
        Cause::Disconnect
    } else if flags & SOCK_LINGER != 0 && linger == 0 {
        Cause::Linger
    } else {
        Cause::UnreadData
    }
}

#[inline(always)]
fn report<L: Load, C: StackIdContext>(
    ctx: &C,
    sock: Option<Sock<L>>,
    flow: &Flow,
    end: &End,
) -> Result<(), Filtered> {
    if !filter::admits(flow) || !filter::admits_state(end.state) || !cgroups::admits(sock) {
        return Err(Filtered);
    }
    let is_client = match sock {
        Some(sock) if end.state != TCP_LISTEN => {
            lives::role(sock, lives::last(sock).as_deref()) == Role::Client as u8
        }
        _ => false,
    };
    let key = CountKey {
        kind: Kind::Resets as u32,
        code: end.reason,
        netns: flow.netns,
        port: if is_client { flow.dport } else { flow.sport },
        any_port: 0,
        location: (end.direction as u64) << 8 | end.cause as u64,
    };
    let sighting = Sighting {
        key,
        weight: 1,
        comm: [0; 16],
        flow,
        subject: sock,
    };
    publish::<Reset, _>(ctx, &sighting, |record, stack| {
        record.flow = *flow;
        record.idle_ns = NO_IDLE;
        record.lastrcv_ns = NO_IDLE;
        record.acked_ns = NO_IDLE;
        if let Some(sock) = sock {
            owners::of(sock, &mut record.owner);
            record.age_ns = lives::age_ns(lives::last(sock).as_deref());
            if end.state != TCP_LISTEN && end.state != TCP_SYN_SENT {
                record.idle_ns = idle_ns(sock, end.direction);
                record.lastrcv_ns = match sock.tcp_field(Field::IcskLastReceived) {
                    0 => NO_IDLE,
                    at => since(at),
                };
                record.acked_ns = match sock.tcp_field::<u64>(Field::TcpRackTime) {
                    0 => NO_IDLE,
                    at_us => now().saturating_sub(at_us * 1000),
                };
            }
        }
        record.reason = end.reason;
        record.direction = end.direction as u8;
        record.cause = end.cause as u8;
        record.state = end.state;
        record.data = end.data;
        record.stack = stack;
    });
    Ok(())
}

/// Of a reset that was sent: since data last went either way. Of one that was received: since the
/// peer was last heard of, as what we have just sent may be what it answers.
#[inline(always)]
fn idle_ns<L: Load>(sock: Sock<L>, direction: Direction) -> u64 {
    let received: u32 = sock.tcp_field(Field::IcskLastReceived);
    let other: u32 = match direction {
        Direction::Sent => sock.tcp_field(Field::TcpLastSent),
        Direction::Received => sock.tcp_field(Field::TcpLastHeard),
    };
    if received == 0 && other == 0 {
        return NO_IDLE;
    }
    since(received).min(since(other))
}
