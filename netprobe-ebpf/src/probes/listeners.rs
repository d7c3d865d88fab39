//! A listener refuses a connection because a queue is full.
//!
//! These drops never reach `kfree_skb`: the kernel frees the SYN as if it had been served. So
//! the kernel's own tests are repeated here, on the same fields and in the same order.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{
        FEntryContext, FExitContext, ProbeContext, RetProbeContext, tracing::StackIdContext,
    },
};
use netprobe_common::{
    counters::{CountKey, DEPTHS},
    header::Kind,
    offsets::Field,
    record,
    record::Plain,
    records::{
        Flow, Owner,
        listeners::{Refusal, Stage},
    },
};

use crate::{
    cgroups,
    emit::{Filtered, Sighting, account, publish},
    filter,
    load::{Load, Probed, Typed},
    maps::{CONFIG, COUNTS, SYN_CHECKS, add, count, counters, frozen, value},
    owners, packet,
    sock::Sock,
    subgroups::Subject,
};

record! {
    /// A SYN that only the return of `tcp_conn_request` can tell to be refused.
    pub struct SynCheck {
        /// The listener, 0 when nothing is to be checked.
        pub sock: u64,
        /// The SYN.
        pub skb: u64,
        /// Half-open connections before it.
        pub backlog: u32,
        /// The stage that refused it if none was added, raw.
        pub stage: u32,
    }
}

// match-proto:v6.12:net/ipv4/tcp_input.c:int tcp_conn_request(struct request_sock_ops *rsk_ops, const struct tcp_request_sock_ops *af_ops, struct sock *sk, struct sk_buff *skb)
#[fentry(function = "tcp_conn_request")]
pub(crate) fn listeners_syn(ctx: FEntryContext) -> i32 {
    on_syn(Typed, &ctx, ctx.arg(2), ctx.arg(3));
    0
}

#[kprobe]
pub(crate) fn listeners_syn_k(ctx: ProbeContext) -> u32 {
    let (sk, skb) = (ctx.arg(2).unwrap_or(0), ctx.arg(3).unwrap_or(0));
    on_syn(Probed, &ctx, sk, skb);
    0
}

#[fexit(function = "tcp_conn_request")]
pub(crate) fn listeners_done(ctx: FExitContext) -> i32 {
    on_syn_done(Typed, &ctx, ctx.arg(2), ctx.arg(3));
    0
}

#[kretprobe]
pub(crate) fn listeners_done_k(ctx: RetProbeContext) -> u32 {
    if let Some(check) = value(SYN_CHECKS.get_ptr_mut(0)) {
        on_syn_done(Probed, &ctx, check.sock, check.skb);
    }
    0
}

// match-proto:v6.12:net/ipv4/tcp_ipv4.c:struct sock *tcp_v4_syn_recv_sock(const struct sock *sk, struct sk_buff *skb, struct request_sock *req, struct dst_entry *dst, struct request_sock *req_unhash, bool *own_req)
#[fentry(function = "tcp_v4_syn_recv_sock")]
pub(crate) fn listeners_ack4(ctx: FEntryContext) -> i32 {
    on_ack(Typed, &ctx, ctx.arg(0), ctx.arg(1));
    0
}

#[kprobe]
pub(crate) fn listeners_ack4_k(ctx: ProbeContext) -> u32 {
    let (sk, skb) = (ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    on_ack(Probed, &ctx, sk, skb);
    0
}

// match-proto:v6.12:net/ipv6/tcp_ipv6.c:struct sock *tcp_v6_syn_recv_sock(const struct sock *sk, struct sk_buff *skb, struct request_sock *req, struct dst_entry *dst, struct request_sock *req_unhash, bool *own_req)
#[fentry(function = "tcp_v6_syn_recv_sock")]
pub(crate) fn listeners_ack6(ctx: FEntryContext) -> i32 {
    on_ack6(Typed, &ctx, ctx.arg(0), ctx.arg(1));
    0
}

#[kprobe]
pub(crate) fn listeners_ack6_k(ctx: ProbeContext) -> u32 {
    let (sk, skb) = (ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    on_ack6(Probed, &ctx, sk, skb);
    0
}

/// What is known of a SYN when `tcp_conn_request` is entered.
enum Fate {
    /// It goes on.
    Passes,
    /// It is refused here.
    Refused(Stage),
    /// The stage refuses it on some kernels; the return of the function tells.
    Open(Stage),
}

#[inline(always)]
fn on_syn<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, skb: u64) {
    let Some(sock) = Sock::new(load, sk) else {
        return;
    };
    let queues = Queues::of(sock);
    // A SYN that reopens a TIME_WAIT connection skips the backlog tests.
    let reopens = load.field::<u32>(skb, Field::SkbTcpTwIsn) != 0;
    let outcome = match fate(&queues, reopens) {
        Fate::Passes => Err(Filtered),
        Fate::Refused(stage) => refuse(ctx, sock, skb, &queues, stage),
        Fate::Open(stage) => return watch(sk, skb, &queues, stage),
    };
    account(Kind::Listeners, outcome);
}

/// The tests of `tcp_conn_request`, in its order.
#[inline(always)]
fn fate(queues: &Queues, reopens: bool) -> Fate {
    let stage = if queues.syncookies == 0 {
        Stage::SynBacklog
    } else {
        Stage::SynCookie
    };
    let is_full = queues.backlog > queues.accept_limit && !reopens;
    if is_full && queues.syncookies == 0 {
        return Fate::Refused(stage);
    }
    if queues.accept > queues.accept_limit {
        return Fate::Refused(Stage::SynAcceptQueue);
    }
    if is_full {
        return Fate::Refused(stage);
    }
    if reopens {
        return Fate::Passes;
    }
    // At the limit exactly, older kernels refuse and newer ones accept.
    if queues.backlog == queues.accept_limit {
        return Fate::Open(stage);
    }
    if queues.syncookies == 0 && queues.is_in_reserve() {
        return Fate::Open(Stage::SynReserved);
    }
    Fate::Passes
}

/// Keeps a SYN for the return of the function. Softirq keeps this CPU until then.
#[inline(always)]
fn watch(sk: u64, skb: u64, queues: &Queues, stage: Stage) {
    if let Some(check) = value(SYN_CHECKS.get_ptr_mut(0)) {
        *check = SynCheck {
            sock: sk,
            skb,
            backlog: queues.backlog,
            stage: stage as u32,
        };
    }
}

/// A SYN that was kept: refused if the listener has no more half-open connections than before.
#[inline(always)]
fn on_syn_done<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, skb: u64) {
    let Some(check) = value(SYN_CHECKS.get_ptr_mut(0)) else {
        return;
    };
    if check.sock == 0 {
        return;
    }
    check.sock = 0;
    let Some(sock) = Sock::new(load, sk) else {
        return;
    };
    let mut queues = Queues::of(sock);
    let outcome = if queues.backlog > check.backlog {
        Err(Filtered)
    } else {
        queues.backlog = check.backlog;
        refuse(ctx, sock, skb, &queues, Stage::from_raw(check.stage))
    };
    account(Kind::Listeners, outcome);
}

/// The first test of `tcp_v4_syn_recv_sock` and `tcp_v6_syn_recv_sock`.
#[inline(always)]
fn on_ack<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, skb: u64) {
    let Some(sock) = Sock::new(load, sk) else {
        return;
    };
    let queues = Queues::of(sock);
    if frozen(&CONFIG.depths) != 0 {
        count_depth(sock, skb, &queues);
    }
    let outcome = if queues.accept > queues.accept_limit {
        refuse(ctx, sock, skb, &queues, Stage::AckAcceptQueue)
    } else {
        Err(Filtered)
    };
    account(Kind::Listeners, outcome);
}

/// Counts how full the accept queue is, by its limit and in powers of two.
#[inline(always)]
fn count_depth<L: Load>(sock: Sock<L>, skb: u64, queues: &Queues) {
    let mut flow = Flow::zeroed();
    let _unreadable = packet::read(sock.load, skb, &mut flow);
    flow.netns = sock.netns();
    if !filter::admits(&flow) {
        return;
    }
    let key = CountKey {
        kind: DEPTHS,
        code: queues.accept_limit,
        location: u64::from(u32::BITS - queues.accept.leading_zeros()),
        ..CountKey::zeroed()
    };
    if !count(&COUNTS, &key, 1)
        && let Some(counters) = counters(Kind::Listeners)
    {
        add(&mut counters.map_full, 1);
    }
}

/// For an IPv4 packet on an IPv6 listener the kernel calls the IPv4 function, which is probed too.
#[inline(always)]
fn on_ack6<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, skb: u64) {
    if !packet::is_ipv4(load, skb) {
        on_ack(load, ctx, sk, skb);
    }
}

/// The queues of a listener, read once.
struct Queues {
    accept: u32,
    accept_limit: u32,
    backlog: u32,
    syn_limit: u32,
    syncookies: u8,
}

impl Queues {
    #[inline(always)]
    fn of<L: Load>(sock: Sock<L>) -> Self {
        let net: u64 = sock.load.field(sock.address, Field::SkcNet);
        Self {
            accept: sock.load.field(sock.address, Field::SkAckBacklog),
            accept_limit: sock.load.field(sock.address, Field::SkMaxAckBacklog),
            backlog: sock.tcp_field(Field::IcskQlen),
            syn_limit: sock.load.field(net, Field::NetMaxSynBacklog),
            syncookies: sock.load.field(net, Field::NetSyncookies),
        }
    }

    /// Whether fewer than a quarter of `tcp_max_syn_backlog` is left, which is kept for peers
    /// that have proven to be alive.
    #[inline(always)]
    fn is_in_reserve(&self) -> bool {
        (self.syn_limit as i32).wrapping_sub(self.backlog as i32) < (self.syn_limit as i32) >> 2
    }
}

/// A listener, which is its own owner's business.
struct Listener<L>(Sock<L>);

impl<L: Load> Subject for Listener<L> {
    #[inline(always)]
    fn owner(&self, owner: &mut Owner) {
        owners::of(self.0, owner);
    }

    #[inline(always)]
    fn listener(&self) -> Option<([u8; 16], u16)> {
        let family = self.0.family();
        Some((self.0.local_address(family), family))
    }
}

#[inline(always)]
fn refuse<L: Load, C: StackIdContext>(
    ctx: &C,
    sock: Sock<L>,
    skb: u64,
    queues: &Queues,
    stage: Stage,
) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    // Packet of the client; without it the listener's own end still names the victim.
    let _unreadable = packet::read(sock.load, skb, &mut flow);
    sock.adopt(&mut flow);
    flow.netns = sock.netns();
    if !filter::admits(&flow) || !cgroups::admits(Some(sock)) {
        return Err(Filtered);
    }
    let port: u16 = sock.load.field(sock.address, Field::SkcNum);
    let key = CountKey {
        kind: Kind::Listeners as u32,
        code: stage as u32,
        netns: flow.netns,
        port: port.to_be_bytes(),
        any_port: 0,
        location: 0,
    };
    publish::<Refusal, _>(
        ctx,
        &Sighting {
            key,
            weight: 1,
            comm: [0; 16],
            flow: &flow,
            subject: Listener(sock),
        },
        |record, stack| {
            record.flow = flow;
            owners::of(sock, &mut record.owner);
            record.listener_family = sock.family();
            record.listener_addr = sock.local_address(record.listener_family);
            record.listener_port = port;
            record.stage = stage as u32;
            record.accept_queue = queues.accept;
            record.accept_limit = queues.accept_limit;
            record.syn_backlog = queues.backlog;
            record.syn_limit = queues.syn_limit;
            record.stack = stack;
        },
    );
    Ok(())
}
