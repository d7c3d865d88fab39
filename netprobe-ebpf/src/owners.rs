//! Who owns a socket, also after its process has closed it.
//!
//! Probes that need this attach [`track`] to the state changes and [`forget`] to the destruction of
//! sockets; of several, only one does it for all. What is remembered is bounded, and the least used goes
//! first. Probes that follow whole connections remember the owner there, see `lives`.

use aya_ebpf::programs::BtfTracePointContext;
use netprobe_common::{header::Kind, records::Owner};

use crate::{
    lives,
    load::{Load, Typed},
    maps::{CONFIG, OWNERS, frozen, value},
    sock::{
        Sock, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_LISTEN,
        TCP_SYN_RECV, TCP_SYN_SENT,
    },
    task,
};

/// [`track`] for every socket of TCP.
#[inline(always)]
pub(crate) fn on_state(kind: Kind, ctx: &BtfTracePointContext) {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if let Some(sock) = Sock::new(Typed, ctx.arg(0)).filter(|sock| sock.is_tcp()) {
        track(kind, sock, old as u8, new as u8);
    }
}

/// Notes who opens, or else who closes a connection: those are system calls of the owner. Nothing if
/// another probe than `kind` does that.
#[inline(always)]
pub(crate) fn track(kind: Kind, sock: Sock<Typed>, old: u8, new: u8) {
    const BPF_ANY: u64 = 0;
    const BPF_NOEXIST: u64 = 1;
    if frozen(&CONFIG.owners_kept_by) != kind as u32 {
        return;
    }
    if new == TCP_SYN_SENT || new == TCP_LISTEN {
        own(sock, BPF_ANY);
    } else if ((new == TCP_FIN_WAIT1 || new == TCP_LAST_ACK) && old != TCP_SYN_RECV)
        || (new == TCP_CLOSE && is_aborted(sock, old))
    {
        // A thread of the kernel closes for somebody else (MPTCP).
        if !task::is_kernel_thread() {
            own(sock, BPF_NOEXIST);
        }
    }
}

/// Whether a socket that goes to CLOSE is aborted by its own process, or that of its listener: then
/// it has no error, and is not orphaned before.
#[inline(always)]
pub(crate) fn is_aborted(sock: Sock<Typed>, old: u8) -> bool {
    let is_open = old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT;
    is_open && sock.error() == 0 && !sock.is_dead()
}

/// The socket is destroyed.
#[inline(always)]
pub(crate) fn forget(kind: Kind, sk: u64) {
    if frozen(&CONFIG.owners_kept_by) == kind as u32 {
        let _unknown = OWNERS.remove(sk);
    }
}

/// The owner of a full socket as it was noted, or else as the socket's file tells.
#[inline(always)]
pub(crate) fn of<L: Load>(sock: Sock<L>, owner: &mut Owner) {
    if let Some(known) = value(OWNERS.get_ptr_mut(sock.address)) {
        *owner = *known;
    } else if let Some(life) = lives::last(sock) {
        *owner = life.owner;
    }
    let ino = sock.inode();
    owner.is_open = u32::from(ino != 0);
    if owner.ino == 0 {
        owner.ino = ino;
    }
    owner.cgroup = sock.cgroup();
}

/// The running task, as owner of `sock`.
#[inline(always)]
pub(crate) fn caller<L: Load>(sock: Sock<L>) -> Owner {
    Owner {
        ino: sock.inode(),
        pid: task::pid(),
        is_open: 0,
        comm: task::process_comm(),
        cgroup: 0,
    }
}

#[inline(always)]
fn own(sock: Sock<Typed>, mode: u64) {
    // Full: the map evicts by itself.
    let _evicting = OWNERS.insert(sock.address, caller(sock), mode);
}
