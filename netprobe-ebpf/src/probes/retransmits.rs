//! TCP sends a segment again: data, a SYN, or a SYN-ACK.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use netprobe_common::{
    counters::CountKey,
    header::Kind,
    offsets::Field,
    record::Plain,
    records::{
        Flow,
        retransmits::{Cause, Retransmit},
    },
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, publish},
    filter,
    load::{Load, Typed, has},
    owners,
    probes::arguments::argument,
    sock::{Sock, TCP_NEW_SYN_RECV, TCP_SYN_SENT},
};

/// `TCP_CA_Recovery` and `TCP_CA_Loss` of `enum tcp_ca_state`.
const TCP_CA_RECOVERY: u8 = 3;
const TCP_CA_LOSS: u8 = 4;
/// `ICSK_TIME_LOSS_PROBE` of `icsk_pending`.
const ICSK_TIME_LOSS_PROBE: u8 = 5;

// match-proto:v6.18:include/trace/events/tcp.h:tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb, int err)
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub(crate) fn retransmits(ctx: BtfTracePointContext) -> i32 {
    account(Kind::Retransmits, try_retransmits(&ctx));
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)
#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub(crate) fn retransmits_synack(ctx: BtfTracePointContext) -> i32 {
    account(Kind::Retransmits, try_retransmits_synack(&ctx));
    0
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn retransmits_state(ctx: BtfTracePointContext) -> i32 {
    owners::on_state(Kind::Retransmits, &ctx);
    0
}

// match-proto:v6.12:include/trace/events/tcp.h:tcp_destroy_sock(struct sock *sk)
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn retransmits_gone(ctx: BtfTracePointContext) -> i32 {
    owners::forget(Kind::Retransmits, ctx.arg(0));
    0
}

#[inline(always)]
fn try_retransmits(ctx: &BtfTracePointContext) -> Result<(), Filtered> {
    let sock = Sock::new(Typed, ctx.arg(0)).ok_or(Filtered)?;
    let skb: u64 = ctx.arg(1);
    let mut flow = Flow::zeroed();
    sock.flow(&mut flow);
    let state = sock.state();
    if !filter::admits(&flow) || !filter::admits_state(state) || !cgroups::admits(Some(sock)) {
        return Err(Filtered);
    }
    let cause = cause(sock, state);
    let segs: u16 = Typed.field(skb, Field::SkbTcpGsoSegs);
    let segs = u32::from(segs);
    let err = if has(Field::ArgRetransmitErr) {
        argument(ctx, Field::ArgRetransmitErr) as i32
    } else {
        0
    };
    // A failed attempt sent nothing; it weighs nothing.
    let weight = if err == 0 { u64::from(segs) } else { 0 };
    let sighting = Sighting {
        key: key(&flow, cause),
        weight,
        comm: [0; 16],
        flow: &flow,
        subject: Some(sock),
    };
    publish::<Retransmit, _>(ctx, &sighting, |record, stack| {
        record.flow = flow;
        owners::of(sock, &mut record.owner);
        record.seq = Typed.field(skb, Field::SkbTcpSeq);
        record.segs = segs;
        record.err = err;
        record.attempt = attempt(sock, cause);
        let srtt: u32 = sock.tcp_field(Field::TcpSrttUs);
        record.srtt_us = srtt >> 3;
        record.cwnd = sock.tcp_field(Field::TcpSndCwnd);
        record.stack = stack;
        record.state = state;
        record.cause = cause as u8;
    });
    Ok(())
}

#[inline(always)]
fn try_retransmits_synack(ctx: &BtfTracePointContext) -> Result<(), Filtered> {
    let listener = Sock::new(Typed, ctx.arg(0)).ok_or(Filtered)?;
    // A request_sock begins with the sock_common of the connection to be.
    let request = Sock::new(Typed, ctx.arg(1)).ok_or(Filtered)?;
    let mut flow = Flow::zeroed();
    request.flow(&mut flow);
    if !filter::admits(&flow)
        || !filter::admits_state(TCP_NEW_SYN_RECV)
        || !cgroups::admits(Some(listener))
    {
        return Err(Filtered);
    }
    let sighting = Sighting {
        key: key(&flow, Cause::SynAck),
        weight: 1,
        comm: [0; 16],
        flow: &flow,
        subject: Some(listener),
    };
    publish::<Retransmit, _>(ctx, &sighting, |record, stack| {
        record.flow = flow;
        owners::of(listener, &mut record.owner);
        record.segs = 1;
        let retrans: u8 = Typed.field(request.address, Field::ReqNumRetrans);
        record.attempt = u32::from(retrans) + 1;
        record.stack = stack;
        record.state = TCP_NEW_SYN_RECV;
        record.cause = Cause::SynAck as u8;
    });
    Ok(())
}

#[inline(always)]
fn key(flow: &Flow, cause: Cause) -> CountKey {
    CountKey {
        kind: Kind::Retransmits as u32,
        code: cause as u32,
        netns: flow.netns,
        port: flow.dport,
        any_port: 0,
        location: 0,
    }
}

#[inline(always)]
fn cause(sock: Sock<Typed>, state: u8) -> Cause {
    if state == TCP_SYN_SENT {
        return Cause::Syn;
    }
    let mask = crate::load::offset_of(Field::IcskCaStateMask) as u8;
    let ca_state: u8 = sock.tcp_field(Field::IcskCaState);
    match ca_state & mask {
        // Not after a timeout, but `tcp_simple_retransmit`: it forgets the threshold that a timeout remembers.
        TCP_CA_LOSS
            if timeouts(sock) == 0 && sock.tcp_field::<u32>(Field::TcpPriorSsthresh) == 0 =>
        {
            Cause::Other
        }
        TCP_CA_LOSS => Cause::Rto,
        TCP_CA_RECOVERY => Cause::Fast,
        _ => {
            let pending: u8 = sock.tcp_field(Field::IcskPending);
            if pending == ICSK_TIME_LOSS_PROBE {
                Cause::Tlp
            } else {
                Cause::Other
            }
        }
    }
}

/// Timeouts since something was acknowledged, this one included.
#[inline(always)]
fn timeouts(sock: Sock<Typed>) -> u32 {
    u32::from(sock.tcp_field::<u8>(Field::IcskRetransmits))
}

/// SYNs are counted one by one; data by the timeouts.
#[inline(always)]
fn attempt(sock: Sock<Typed>, cause: Cause) -> u32 {
    match cause {
        Cause::Syn => sock.tcp_field(Field::TcpTotalRetrans),
        Cause::Rto => timeouts(sock).max(1),
        Cause::Fast | Cause::Tlp | Cause::Other | Cause::SynAck => 1,
    }
}
