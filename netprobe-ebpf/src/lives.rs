//! The life of each TCP connection: when it was opened, by whom, and in which state it was last.
//!
//! Probes that need this attach [`track`] to the state changes and [`forget`] to the destruction
//! of sockets; of several, only one does it for all.

use netprobe_common::{
    header::Kind,
    record,
    record::Plain,
    records::{Flow, Owner, Role},
};

use crate::{
    emit::{is_enough_remembered, is_sparse},
    load::{Load, Typed},
    maps::{CONFIG, GONE, LIVES, add, counters, frozen, value},
    owners::{caller, is_aborted},
    sock::{Sock, TCP_CLOSE, TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT},
    task,
};

record! {
    /// What is known of a connection beyond its socket.
    pub struct Life {
        /// When it was opened; 0 is before we came.
        pub start_ns: u64,
        /// The task that opened it, or else the one that closed it.
        pub owner: Owner,
        /// State before it was closed; 0 while it is open.
        pub last_state: u32,
        /// A [`Role`], raw; 0 if its opening was not seen.
        pub role: u8,
        /// 1 once its way to TIME_WAIT has been reported.
        pub time_wait: u8,
        /// Reserved, zero.
        pub reserved: [u8; 2],
    }
}

record! {
    /// What was known of the connection whose socket was destroyed last.
    pub struct Gone {
        /// The socket's address.
        pub sk: u64,
        /// What was known.
        pub life: Life,
    }
}

/// Notes a change of state, unless another probe than `kind` does that.
#[inline(always)]
pub(crate) fn track(kind: Kind, sock: Sock<Typed>, old: u8, new: u8) {
    if frozen(&CONFIG.lives_kept_by) != kind as u32 {
        return;
    }
    if new == TCP_SYN_SENT {
        if has_room() {
            begin(kind, sock, Role::Client, caller(sock));
        }
    } else if new == TCP_SYN_RECV && old == TCP_LISTEN {
        if has_room() {
            begin(kind, sock, Role::Server, Owner::zeroed());
        }
    } else if new == TCP_LISTEN
        || ((new == TCP_FIN_WAIT1 || new == TCP_LAST_ACK) && old != TCP_SYN_RECV)
    {
        // Only `listen`, `close` and `shutdown` lead here, in the caller's own task.
        claim(kind, sock);
    } else if new == TCP_CLOSE {
        let _known = close(kind, sock, old);
    }
}

/// As [`track`] for a socket that goes to CLOSE; what is known of it.
#[inline(always)]
pub(crate) fn close(kind: Kind, sock: Sock<Typed>, old: u8) -> Option<&'static mut Life> {
    if frozen(&CONFIG.lives_kept_by) != kind as u32 || old == TCP_LISTEN || old == TCP_CLOSE {
        return of(sock.address);
    }
    if is_aborted(sock, old) {
        claim(kind, sock);
    }
    let life = if is_sparse(Kind::Lifetimes) {
        of(sock.address)
    } else {
        entry(kind, sock)
    };
    let life = life?;
    life.last_state = u32::from(old);
    Some(life)
}

/// What is known of `sk`.
#[inline(always)]
pub(crate) fn of(sk: u64) -> Option<&'static mut Life> {
    value(LIVES.get_ptr_mut(sk))
}

/// What is known of `sock`, also where it has just been destroyed on this CPU: late data is answered with a RST only then.
#[inline(always)]
pub(crate) fn last<L: Load>(sock: Sock<L>) -> Option<&'static mut Life> {
    if let Some(life) = of(sock.address) {
        return Some(life);
    }
    let gone = value(GONE.get_ptr_mut(0))?;
    if gone.sk != sock.address || !sock.is_dead() {
        return None;
    }
    Some(&mut gone.life)
}

/// What is known of `sock`, an empty entry if it is nothing; `None` if there is no room.
#[inline(always)]
pub(crate) fn entry<L: Load>(kind: Kind, sock: Sock<L>) -> Option<&'static mut Life> {
    if let Some(life) = of(sock.address) {
        return Some(life);
    }
    insert(kind, sock.address, &Life::zeroed());
    of(sock.address)
}

/// The socket is destroyed.
#[inline(always)]
pub(crate) fn forget(kind: Kind, sk: u64) {
    // A lookup takes no lock.
    if frozen(&CONFIG.lives_kept_by) == kind as u32
        && let Some(life) = of(sk)
    {
        if let Some(gone) = value(GONE.get_ptr_mut(0)) {
            *gone = Gone { sk, life: *life };
        }
        let _unknown = LIVES.remove(sk);
    }
}

/// Whether another socket may be remembered: where the ends of connections are sent sparsely, so many are as are sent.
#[inline(always)]
fn has_room() -> bool {
    !is_sparse(Kind::Lifetimes) || !is_enough_remembered()
}

/// Whether `sock` opened its connection or accepted it.
///
/// The socket itself tells, so that this is known also of connections that were there before us.
#[inline(always)]
pub(crate) fn role<L: Load>(sock: Sock<L>, life: Option<&Life>) -> u8 {
    if let Some(life) = life
        && life.role != 0
    {
        return life.role;
    }
    if sock.was_accepted() {
        Role::Server as u8
    } else {
        Role::Client as u8
    }
}

/// The port of the service that a connection belongs to: that of the end that did not open it.
#[inline(always)]
pub(crate) fn service_port(flow: &Flow, role: u8) -> [u8; 2] {
    if role == Role::Client as u8 {
        flow.dport
    } else {
        flow.sport
    }
}

/// Nanoseconds since the connection was opened; 0 if that was not seen.
#[inline(always)]
pub(crate) fn age_ns(life: Option<&Life>) -> u64 {
    match life {
        Some(life) if life.start_ns != 0 => crate::emit::now() - life.start_ns,
        _ => 0,
    }
}

#[inline(always)]
fn begin(kind: Kind, sock: Sock<Typed>, role: Role, owner: Owner) {
    let life = Life {
        start_ns: crate::emit::now(),
        owner,
        last_state: 0,
        role: role as u8,
        time_wait: 0,
        reserved: [0; 2],
    };
    insert(kind, sock.address, &life);
}

/// The running task closes the connection: it owns it, unless another one opened it. A thread of the kernel
/// closes for somebody else (MPTCP).
#[inline(always)]
fn claim(kind: Kind, sock: Sock<Typed>) {
    let is_over = is_sparse(Kind::Lifetimes) && of(sock.address).is_none() && !has_room();
    if is_over || task::is_kernel_thread() {
        return;
    }
    if let Some(life) = entry(kind, sock)
        && life.owner.pid == 0
    {
        life.owner = caller(sock);
    }
}

#[inline(always)]
fn insert(kind: Kind, sk: u64, life: &Life) {
    if LIVES.insert(sk, life, 0).is_err()
        && let Some(counters) = counters(kind)
    {
        add(&mut counters.map_full, 1);
    }
}
