//! A connection ends: its socket, which knows what went over it, goes to CLOSE.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{
        Flow, Role,
        lifetimes::{Closer, Ending, Lifetime},
    },
};

use crate::{
    cgroups, connections,
    emit::{Filtered, Sighting, account, count_only, publish},
    filter,
    lives::{self, Life},
    load::{Load, Typed},
    owners,
    sock::{
        SOCK_DEAD, SOCK_DONE, Sock, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED,
        TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_SYN_SENT,
    },
};

const EPIPE: i32 = -32;
const ECONNABORTED: i32 = -103;
const ECONNRESET: i32 = -104;
const ETIMEDOUT: i32 = -110;
const ECONNREFUSED: i32 = -111;

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn lifetimes(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let (old, new) = (old as u8, new as u8);
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        on_state(&ctx, sock, old, new);
    }
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn lifetimes_gone(ctx: BtfTracePointContext) -> i32 {
    lives::forget(Kind::Lifetimes, ctx.arg(0));
    0
}

/// A socket of TCP goes from one state to another.
#[inline(always)]
pub(super) fn on_state(ctx: &BtfTracePointContext, sock: Sock<Typed>, old: u8, new: u8) {
    if new != TCP_CLOSE {
        return lives::track(Kind::Lifetimes, sock, old, new);
    }
    let life = lives::close(Kind::Lifetimes, sock, old);
    if was_connection(old) {
        let outcome = try_lifetimes(ctx, sock, life.as_deref(), old);
        account(Kind::Lifetimes, outcome);
    }
}

/// As [`on_state`] for a socket that goes to CLOSE where connections are not followed; false if this one is, or failed.
#[inline(always)]
pub(super) fn rest(sock: Sock<Typed>, old: u8) -> bool {
    if old == TCP_SYN_SENT || !was_connection(old) || lives::of(sock.address).is_some() {
        return false;
    }
    account(Kind::Lifetimes, count_end(sock, old));
    true
}

#[inline(always)]
fn count_end(sock: Sock<Typed>, old: u8) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    sock.last_flow(&mut flow);
    if !filter::admits(&flow) {
        return Err(Filtered);
    }
    let role = lives::role(sock, None);
    let key = key(&flow, role, ending(sock, old, sock.error()));
    let bytes = Bytes::of(sock, role == Role::Client as u8);
    count_only(Kind::Lifetimes, &key, bytes.sent + bytes.received);
    Ok(())
}

/// Its group in `--count`.
#[inline(always)]
fn key(flow: &Flow, role: u8, ending: Ending) -> CountKey {
    CountKey {
        kind: Kind::Lifetimes as u32,
        code: ending as u32,
        netns: flow.netns,
        port: lives::service_port(flow, role),
        any_port: 0,
        location: u64::from(role),
    }
}

/// Listeners, and handshakes that were not finished by the peer, are none.
#[inline(always)]
fn was_connection(old: u8) -> bool {
    matches!(
        old,
        TCP_ESTABLISHED
            | TCP_SYN_SENT
            | TCP_FIN_WAIT1
            | TCP_FIN_WAIT2
            | TCP_CLOSE_WAIT
            | TCP_LAST_ACK
            | TCP_CLOSING
    )
}

/// Whether a socket that leaves `old` for CLOSE without an error goes on in TIME_WAIT, rather than
/// being reset by its own end.
#[inline(always)]
pub(crate) fn enters_time_wait(sock: Sock<Typed>, old: u8) -> bool {
    let is_closed = sock.flags() & (SOCK_DEAD | SOCK_DONE) != 0;
    let may_wait = old == TCP_CLOSING
        || (old == TCP_FIN_WAIT2 && is_closed && sock.tcp_field::<i32>(Field::TcpLinger2) >= 0);
    // Data that comes with the acknowledgement of a FIN is answered with a RST instead.
    may_wait && !connections::is_gone(sock)
}

#[inline(always)]
fn ending(sock: Sock<Typed>, old: u8, error: i32) -> Ending {
    let is_orderly = old == TCP_LAST_ACK || enters_time_wait(sock, old);
    match error {
        _ if old == TCP_SYN_SENT => Ending::Failed,
        ECONNRESET | EPIPE | ECONNREFUSED | ECONNABORTED => Ending::Reset,
        ETIMEDOUT => Ending::Timeout,
        _ if is_orderly => Ending::Fin,
        0 => Ending::Reset,
        // What an unanswered retransmission was told about the path.
        _ => Ending::Timeout,
    }
}

#[inline(always)]
fn closer(old: u8, error: i32) -> Closer {
    match old {
        TCP_SYN_SENT => Closer::Neither,
        TCP_CLOSE_WAIT | TCP_LAST_ACK => Closer::Remote,
        TCP_ESTABLISHED if error == ECONNRESET => Closer::Remote,
        // Keepalive, retransmissions or TCP_USER_TIMEOUT gave up before anybody closed.
        TCP_ESTABLISHED if error != 0 => Closer::Neither,
        _ => Closer::Local,
    }
}

#[inline(always)]
fn try_lifetimes(
    ctx: &BtfTracePointContext,
    sock: Sock<Typed>,
    life: Option<&Life>,
    old: u8,
) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    sock.last_flow(&mut flow);
    if !filter::admits(&flow) || !filter::admits_state(old) || !cgroups::admits(Some(sock)) {
        return Err(Filtered);
    }
    let error = sock.error();
    let ending = ending(sock, old, error);
    let role = lives::role(sock, life);
    let bytes = Bytes::of(sock, role == Role::Client as u8);
    let sighting = Sighting {
        key: key(&flow, role, ending),
        weight: bytes.sent + bytes.received,
        comm: [0; 16],
        flow: &flow,
        subject: Some(sock),
    };
    publish::<Lifetime, _>(ctx, &sighting, |record, stack| {
        record.flow = flow;
        owners::of(sock, &mut record.owner);
        record.duration_ns = lives::age_ns(life);
        record.bytes_sent = bytes.sent;
        record.bytes_received = bytes.received;
        traffic(sock, record);
        record.errno = error;
        record.role = role;
        record.closer = closer(old, error) as u8;
        record.ending = ending as u8;
        record.time_wait = u8::from(matches!(ending, Ending::Fin) && old != TCP_LAST_ACK);
        record.state = old;
        record.stack = stack;
    });
    Ok(())
}

/// Data only, each byte once.
struct Bytes {
    sent: u64,
    received: u64,
}

impl Bytes {
    #[inline(always)]
    fn of(sock: Sock<Typed>, is_client: bool) -> Self {
        let Some(tcp) = Typed.tcp_sock(sock.address) else {
            return Self {
                sent: 0,
                received: 0,
            };
        };
        let sent: u64 = Typed.field(tcp, Field::TcpBytesSent);
        let again: u64 = Typed.field(tcp, Field::TcpBytesRetrans);
        let received: u64 = Typed.field(tcp, Field::TcpBytesReceived);
        // What did not get past this machine is sent anew, and counted anew as if it were other data: the sequence numbers
        // know better. A SYN has one of them.
        let acked: u64 = Typed.field(tcp, Field::TcpBytesAcked);
        let una: u32 = Typed.field(tcp, Field::TcpSndUna);
        let next: u32 = Typed.field(tcp, Field::TcpSndNxt);
        let numbered =
            (acked + u64::from(next.wrapping_sub(una))).saturating_sub(u64::from(is_client));
        // The kernel counts the peer's FIN as a byte.
        let fin = u64::from(sock.flags() & SOCK_DONE != 0);
        Self {
            sent: sent.saturating_sub(again).min(numbered),
            received: received.saturating_sub(fin),
        }
    }
}

#[inline(always)]
fn traffic(sock: Sock<Typed>, record: &mut Lifetime) {
    let Some(tcp) = Typed.tcp_sock(sock.address) else {
        return;
    };
    record.segs_out = Typed.field(tcp, Field::TcpSegsOut);
    record.segs_in = Typed.field(tcp, Field::TcpSegsIn);
    record.retransmits = Typed.field(tcp, Field::TcpTotalRetrans);
    // The kernel keeps eight times the value.
    record.srtt_us = Typed.field::<u32>(tcp, Field::TcpSrttUs) >> 3;
}
