//! A connection is opened: from `connect()` over the port search to ESTABLISHED or failure.
//!
//! State changes are seen by a tracepoint on every kernel. Where functions can be probed too,
//! the port search is timed and synchronous failures carry their errno.

use aya_ebpf::{
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
    record,
    record::Plain,
    records::{
        Flow, Owner,
        connects::{Connect, ErrnoSource, NOT_COUNTED, Outcome},
    },
};

use crate::{
    cgroups,
    emit::{
        Filtered, Sighting, account, count_only, follows_few, is_enough_followed, is_resting,
        publish_if,
    },
    filter, inflight,
    load::{Load, Probed, Typed},
    maps::{CANDIDATES, CONFIG, CONNECTS, WINDOW, add, counters, frozen, value},
    owners,
    probes::lifetimes,
    sock::{
        AF_INET, AF_INET6, Sock, TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT,
    },
    subgroups::Subject,
};

const EADDRNOTAVAIL: i32 = -99;

record! {
    /// A connect under way.
    pub struct Pending {
        /// When `connect` was called, or the SYN was about to be sent.
        pub start_ns: u64,
        /// When the port search began.
        pub search_start_ns: u64,
        /// How long it took; 0 until it is over.
        pub search_ns: u64,
        /// Who called.
        pub owner: Owner,
        /// Where to: the address, kept because a failure clears the socket's.
        pub daddr: [u8; 16],
        /// The port, network byte order.
        pub dport: [u8; 2],
        /// Address family of `daddr`.
        pub family: u16,
        /// 0, or what the port search returned.
        pub errno: i32,
        /// Port checks made, or [`NOT_COUNTED`].
        pub candidates: u32,
        /// 1 while `tcp_v4_connect` or `tcp_v6_connect` runs.
        pub in_call: u32,
        /// CPU, port checks and searches there, and window, when the search began.
        pub cpu: u64,
        /// See `cpu`.
        pub calls: u64,
        /// See `cpu`.
        pub searches: u64,
        /// See `cpu`; 0 when no window was open.
        pub window: u64,
    }
}

// match-proto:v6.12:include/trace/events/sock.h:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)
#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn connects_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        let (old, new) = (old as u8, new as u8);
        if is_resting() && rest(sock, old, new) {
            return 0;
        }
        on_state(&ctx, sock, old, new);
        if frozen(&CONFIG.joined) & (1 << Kind::Lifetimes as u32) != 0 {
            lifetimes::on_state(&ctx, sock, old, new);
        }
    }
    0
}

// match-proto:v6.12:net/ipv4/tcp_ipv4.c:int tcp_v4_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
#[fentry(function = "tcp_v4_connect")]
pub(crate) fn connects_call4(ctx: FEntryContext) -> i32 {
    on_call(Typed, ctx.arg(0), ctx.arg(1));
    0
}

#[kprobe]
pub(crate) fn connects_call4_k(ctx: ProbeContext) -> u32 {
    inflight::enter(&ctx);
    on_call(Probed, ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    0
}

#[fexit(function = "tcp_v4_connect")]
pub(crate) fn connects_ret4(ctx: FExitContext) -> i32 {
    on_return(Typed, &ctx, ctx.arg(0), ctx.arg(3));
    0
}

#[kretprobe]
pub(crate) fn connects_ret4_k(ctx: RetProbeContext) -> u32 {
    if let Some([sk, ..]) = inflight::leave(&ctx) {
        on_return(Probed, &ctx, sk, ctx.ret());
    }
    0
}

// match-proto:v6.12:net/ipv6/tcp_ipv6.c:int tcp_v6_connect(struct sock *sk, struct sockaddr *uaddr, int addr_len)
#[fentry(function = "tcp_v6_connect")]
pub(crate) fn connects_call6(ctx: FEntryContext) -> i32 {
    on_call(Typed, ctx.arg(0), ctx.arg(1));
    0
}

#[fexit(function = "tcp_v6_connect")]
pub(crate) fn connects_ret6(ctx: FExitContext) -> i32 {
    on_return(Typed, &ctx, ctx.arg(0), ctx.arg(3));
    0
}

// match-proto:v6.12:net/ipv4/inet_hashtables.c:int inet_hash_connect(struct inet_timewait_death_row *death_row, struct sock *sk)
#[fentry(function = "inet_hash_connect")]
pub(crate) fn connects_find4(ctx: FEntryContext) -> i32 {
    on_search(ctx.arg(1));
    0
}

#[kprobe]
pub(crate) fn connects_find_k(ctx: ProbeContext) -> u32 {
    inflight::enter(&ctx);
    on_search(ctx.arg(1).unwrap_or(0));
    0
}

#[fexit(function = "inet_hash_connect")]
pub(crate) fn connects_found4(ctx: FExitContext) -> i32 {
    on_search_end(ctx.arg(1), ctx.arg(2));
    0
}

#[kretprobe]
pub(crate) fn connects_found_k(ctx: RetProbeContext) -> u32 {
    if let Some([_death_row, sk, ..]) = inflight::leave(&ctx) {
        on_search_end(sk, ctx.ret());
    }
    0
}

// match-proto:v6.12:net/ipv6/inet6_hashtables.c:int inet6_hash_connect(struct inet_timewait_death_row *death_row, struct sock *sk)
#[fentry(function = "inet6_hash_connect")]
pub(crate) fn connects_find6(ctx: FEntryContext) -> i32 {
    on_search(ctx.arg(1));
    0
}

#[fexit(function = "inet6_hash_connect")]
pub(crate) fn connects_found6(ctx: FExitContext) -> i32 {
    on_search_end(ctx.arg(1), ctx.arg(2));
    0
}

// match-proto:v6.12:net/ipv4/inet_hashtables.c:int __inet_check_established(struct inet_timewait_death_row *death_row, struct sock *sk, __u16 lport, struct inet_timewait_sock **twp)
#[fentry(function = "__inet_check_established")]
pub(crate) fn connects_check4(_ctx: FEntryContext) -> i32 {
    on_check();
    0
}

// match-proto:v6.12:net/ipv6/inet6_hashtables.c:int __inet6_check_established(struct inet_timewait_death_row *death_row, struct sock *sk, const __u16 lport, struct inet_timewait_sock **twp)
#[fentry(function = "__inet6_check_established")]
pub(crate) fn connects_check6(_ctx: FEntryContext) -> i32 {
    on_check();
    0
}

#[kprobe]
pub(crate) fn connects_check_k(_ctx: ProbeContext) -> u32 {
    on_check();
    0
}

/// Called for every candidate port: one addition and nothing else.
#[inline(always)]
fn on_check() {
    if let Some(candidates) = value(CANDIDATES.get_ptr_mut(0)) {
        add(&mut candidates.calls, 1);
    }
}

/// `connect` begins, in the caller's own task.
#[inline(always)]
fn on_call<L: Load>(load: L, sk: u64, address: u64) {
    let Some(sock) = Sock::new(load, sk) else {
        return;
    };
    let mut pending = begin(sock);
    pending.in_call = 1;
    // The address was copied from the user already; a union of sockaddr_in and sockaddr_in6.
    let head: [u32; 2] = Probed.at(address, 0);
    let [family0, family1, port0, port1] = head[0].to_ne_bytes();
    pending.family = u16::from_ne_bytes([family0, family1]);
    pending.dport = [port0, port1];
    pending.daddr = if pending.family == AF_INET6 {
        Probed.at(address, 8)
    } else {
        crate::sock::join([u64::from(head[1]), 0])
    };
    track(sk, &pending);
}

#[inline(always)]
fn begin<L: Load>(sock: Sock<L>) -> Pending {
    Pending {
        start_ns: crate::emit::now(),
        owner: owners::caller(sock),
        candidates: NOT_COUNTED,
        ..Pending::zeroed()
    }
}

/// Keeps the first entry of a call: a v4-mapped connect passes through both families' functions, and its
/// state changes in them. An entry of nobody's call is what an earlier socket at that address left.
#[inline(always)]
fn track(sk: u64, pending: &Pending) {
    const BPF_ANY: u64 = 0;
    if let Some(known) = value(CONNECTS.get_ptr_mut(sk))
        && known.in_call != 0
        && known.owner.pid == pending.owner.pid
    {
        return;
    }
    if CONNECTS.insert(sk, pending, BPF_ANY).is_err()
        && let Some(counters) = counters(Kind::Connects)
    {
        add(&mut counters.map_full, 1);
    }
}

/// What is left to do of a change of state in slices of time in which connections are not followed; true if that is all.
#[inline(always)]
fn rest(sock: Sock<Typed>, old: u8, new: u8) -> bool {
    match (old, new) {
        (_, TCP_LISTEN) => false,
        (_, TCP_SYN_SENT) => true,
        (TCP_SYN_SENT, TCP_ESTABLISHED) if CONNECTS.get_ptr_mut(sock.address).is_none() => {
            account(Kind::Connects, count_established(sock));
            true
        }
        (_, TCP_CLOSE) => lifetimes::rest(sock, old),
        _ => old != TCP_SYN_SENT && (old != TCP_SYN_RECV || sock.was_accepted()),
    }
}

#[inline(always)]
fn count_established(sock: Sock<Typed>) -> Result<(), Filtered> {
    let mut flow = Flow::zeroed();
    sock.flow(&mut flow);
    if !filter::admits(&flow) {
        return Err(Filtered);
    }
    count_only(Kind::Connects, &key(&flow, Ending::ESTABLISHED), 0);
    Ok(())
}

/// Its group in `--count`.
#[inline(always)]
fn key(flow: &Flow, ending: Ending) -> CountKey {
    CountKey {
        kind: Kind::Connects as u32,
        code: ending.errno as u32,
        netns: flow.netns,
        port: flow.dport,
        any_port: 0,
        location: ending.outcome as u64,
    }
}

#[inline(always)]
fn on_state(ctx: &BtfTracePointContext, sock: Sock<Typed>, old: u8, new: u8) {
    if new == TCP_SYN_SENT && !is_enough_followed() {
        let mut pending = begin(sock);
        pending.family = sock.family();
        pending.daddr = sock.peer_address(pending.family);
        pending.dport = Typed.field(sock.address, Field::SkcDport);
        track(sock.address, &pending);
    }
    // A SYN that crosses another leads over SYN_RECV (RFC 9293, 3.5), where accepted connections come from too; these
    // are cheaper told from their backlog than looked up.
    let is_connect = old == TCP_SYN_SENT
        || (old == TCP_SYN_RECV
            && !sock.was_accepted()
            && CONNECTS.get_ptr_mut(sock.address).is_some());
    if is_connect && let Some(ending) = ending(sock, old, new) {
        finish(Typed, ctx, sock.address, ending);
    }
}

/// How SYN_SENT, or SYN_RECV after it, ended: what the socket says, or what can be concluded. `None` if it has not,
/// or if the call that is still running will say.
#[inline(always)]
fn ending(sock: Sock<Typed>, old: u8, new: u8) -> Option<Ending> {
    if new == TCP_ESTABLISHED {
        return Some(Ending::ESTABLISHED);
    }
    if old == TCP_SYN_RECV && new != TCP_CLOSE {
        return Some(Ending::ABORTED);
    }
    if new != TCP_CLOSE {
        return None;
    }
    let mut errno = -Typed.field::<i32>(sock.address, Field::SkErr);
    let mut source = ErrnoSource::Socket;
    let mut is_in_call = false;
    if let Some(pending) = value(CONNECTS.get_ptr_mut(sock.address)) {
        is_in_call = pending.in_call != 0;
        if pending.errno != 0 {
            errno = pending.errno;
            source = ErrnoSource::Return;
        }
    }
    if is_in_call {
        return None;
    }
    // Nobody closes a socket between SYN_SENT and its SYN but `connect` itself, when it finds no port.
    if errno == 0 && sock.tcp_field::<u32>(Field::TcpSegsOut) == 0 {
        errno = EADDRNOTAVAIL;
        source = ErrnoSource::Inferred;
    }
    if errno == 0 {
        return Some(Ending::ABORTED);
    }
    Some(Ending {
        errno,
        source,
        outcome: Outcome::Failed,
    })
}

/// `connect` returns: a failure that never sent a SYN ends here.
#[inline(always)]
fn on_return<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, result: i32) {
    let Some(pending) = value(CONNECTS.get_ptr_mut(sk)) else {
        return;
    };
    pending.in_call = 0;
    if result < 0 {
        let ending = Ending {
            errno: result,
            source: ErrnoSource::Return,
            outcome: Outcome::Failed,
        };
        finish(load, ctx, sk, ending);
    }
}

#[inline(always)]
fn on_search(sk: u64) {
    let Some(pending) = value(CONNECTS.get_ptr_mut(sk)) else {
        return;
    };
    pending.search_start_ns = crate::emit::now();
    let Some(candidates) = value(CANDIDATES.get_ptr_mut(0)) else {
        return;
    };
    add(&mut candidates.searches, 1);
    pending.cpu = u64::from(crate::emit::cpu());
    pending.calls = candidates.calls;
    pending.searches = candidates.searches;
    pending.window = value(WINDOW.get_ptr_mut(0)).map_or(0, |window| *window);
}

#[inline(always)]
fn on_search_end(sk: u64, result: i32) {
    let Some(pending) = value(CONNECTS.get_ptr_mut(sk)) else {
        return;
    };
    if pending.search_start_ns == 0 {
        return;
    }
    pending.search_ns = crate::emit::now() - pending.search_start_ns;
    pending.errno = if result < 0 { result } else { 0 };
    let Some(candidates) = value(CANDIDATES.get_ptr_mut(0)) else {
        return;
    };
    let window = value(WINDOW.get_ptr_mut(0)).map_or(0, |window| *window);
    // The count is this search's alone only if nothing else searched here meanwhile.
    if window != 0
        && pending.window == window
        && pending.cpu == u64::from(crate::emit::cpu())
        && pending.searches == candidates.searches
    {
        pending.candidates = (candidates.calls - pending.calls) as u32;
    }
}

/// How a connect ended.
#[derive(Clone, Copy)]
struct Ending {
    errno: i32,
    source: ErrnoSource,
    outcome: Outcome,
}

impl Ending {
    const ESTABLISHED: Self = Self {
        errno: 0,
        source: ErrnoSource::None,
        outcome: Outcome::Established,
    };

    /// The socket was closed.
    const ABORTED: Self = Self {
        errno: 0,
        source: ErrnoSource::None,
        outcome: Outcome::Aborted,
    };
}

/// Who called `connect` for this socket.
struct Caller<L>(Sock<L>);

impl<L: Load> Subject for Caller<L> {
    #[inline(always)]
    fn owner(&self, owner: &mut Owner) {
        if let Some(pending) = value(CONNECTS.get_ptr_mut(self.0.address)) {
            *owner = pending.owner;
            owner.cgroup = self.0.cgroup();
        } else {
            owners::of(self.0, owner);
        }
    }
}

#[inline(always)]
fn finish<L: Load, C: StackIdContext>(load: L, ctx: &C, sk: u64, ending: Ending) {
    let pending = value(CONNECTS.get_ptr_mut(sk));
    let is_tracked = pending.is_some();
    let outcome = try_finish(load, ctx, sk, pending.as_deref(), ending);
    account(Kind::Connects, outcome);
    if is_tracked {
        let _untracked = CONNECTS.remove(sk);
    }
}

#[inline(always)]
fn try_finish<L: Load, C: StackIdContext>(
    load: L,
    ctx: &C,
    sk: u64,
    pending: Option<&Pending>,
    ending: Ending,
) -> Result<(), Filtered> {
    let sock = Sock::new(load, sk).ok_or(Filtered)?;
    let mut flow = Flow::zeroed();
    sock.flow(&mut flow);
    flow.sport = sock.tcp_field(Field::InetSport);
    if let Some(pending) = pending {
        flow.daddr = pending.daddr;
        flow.dport = pending.dport;
        to_family(&mut flow, pending.family);
    }
    if !filter::admits(&flow)
        || !filter::admits_caller(pending.map(|pending| &pending.owner))
        || !cgroups::admits(Some(sock))
    {
        return Err(Filtered);
    }
    let latency_ns = match pending {
        Some(pending) => crate::emit::now() - pending.start_ns,
        None => 0,
    };
    let comm = pending.map_or([0; 16], |pending| pending.owner.comm);
    // Of one that was not followed neither its caller nor its beginning is known.
    let may_send = pending.is_some() || !follows_few();
    publish_if::<Connect, _>(
        may_send,
        ctx,
        &Sighting {
            key: key(&flow, ending),
            weight: latency_ns,
            comm,
            flow: &flow,
            subject: Caller(sock),
        },
        |record, stack| {
            record.flow = flow;
            record.latency_ns = latency_ns;
            record.candidates = NOT_COUNTED;
            Caller(sock).owner(&mut record.owner);
            if let Some(pending) = pending {
                record.search_ns = pending.search_ns;
                record.candidates = pending.candidates;
            }
            record.syn_attempts = syn_attempts(sock, &flow, ending);
            record.errno = ending.errno;
            record.errno_source = ending.source as u8;
            record.outcome = ending.outcome as u8;
            record.stack = stack;
        },
    );
    Ok(())
}

/// How many SYNs were sent.
#[inline(always)]
fn syn_attempts<L: Load>(sock: Sock<L>, flow: &Flow, ending: Ending) -> u32 {
    let has_port = flow.sport != [0; 2] && ending.errno != EADDRNOTAVAIL;
    if has_port {
        sock.tcp_field::<u32>(Field::TcpTotalRetrans) + 1
    } else {
        0
    }
}

/// The socket's own end may be of the other family: a v4-mapped connect names an IPv6 address.
#[inline(always)]
fn to_family(flow: &mut Flow, family: u16) {
    if flow.family == AF_INET6 && family == AF_INET {
        flow.daddr = crate::sock::map_v4(&flow.daddr);
    }
}
