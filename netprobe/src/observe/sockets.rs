//! Open TCP connections, asked of the kernel (`sock_diag`) in each network namespace that a
//! process lives in.
//!
//! The kernel does not keep when a connection was opened. But it sets the times of the last data
//! either way when one is established: where no data went one way since, that time is the age,
//! and otherwise the age is at least as long.

use std::{
    io,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{
        AF_INET, AF_INET6, IPPROTO_TCP, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_FIN_WAIT1,
        TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT,
    },
    inet::{
        ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
        nlas::{Nla, TcpInfo},
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::{namespaces, owners::measured};

/// A connection that is still open.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenConnection {
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Address and port of this end; IPv4 also where an IPv6 socket speaks it.
    pub local: (IpAddr, u16),
    /// Address and port of the peer.
    pub remote: (IpAddr, u16),
    /// `ipv4`, `ipv6`, or `ipv4-mapped` for IPv4 on an IPv6 socket.
    pub family: &'static str,
    /// TCP state, by number.
    pub state: u8,
    /// Inode number of the socket; 0 if its application has closed it.
    pub ino: u64,
    /// Id of the control group (version 2) that the socket was made in, where the kernel says.
    pub cgroup: Option<u64>,
    /// Whether it was accepted, rather than opened from here; `None` if that cannot be told.
    pub is_server: Option<bool>,
    /// What went over it, if it was ever established.
    pub traffic: Option<Traffic>,
}

/// What went over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Since it was established, if that is known.
    pub age: Option<Duration>,
    /// It is at least this old.
    pub least_age: Duration,
    /// Since data last went either way.
    pub idle: Duration,
    /// Bytes of data sent, each counted once.
    pub bytes_sent: u64,
    /// Bytes of data received.
    pub bytes_received: u64,
    /// Segments sent again.
    pub retransmits: u32,
    /// Smoothed round-trip time in microseconds.
    pub srtt_us: u32,
}

/// The open connections of every namespace, and the namespaces that could not be asked.
pub fn open_connections(netns: Option<u32>) -> Result<(Vec<OpenConnection>, Vec<anyhow::Error>)> {
    let mut namespaces = namespaces::all()?;
    namespaces.retain(|namespace| netns.is_none_or(|wanted| wanted == namespace.inode));
    // One list, one namespace after the other: lists to be put together would take the memory twice.
    let connections = Mutex::new(Vec::new());
    let asked = namespaces::in_each(&namespaces, |namespace| {
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        add_of_this_thread(namespace.inode, &mut connections)
    })?;
    let refused = asked.into_iter().filter_map(|asked| asked.flatten().err());
    let refused = refused.collect();
    let connections = connections
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok((connections, refused))
}

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Inode number of its network namespace.
    pub netns: u32,
    /// Where it listens; IPv4 also where an IPv6 socket does so.
    pub local: (IpAddr, u16),
    /// Inode number of the socket.
    pub ino: u64,
    /// Whether it refuses IPv4 although it listens at every address.
    pub is_v6_only: bool,
    /// Whether it listens at one interface only.
    pub is_bound: bool,
    /// Id of the control group (version 2) that the socket was made in, where the kernel says.
    pub cgroup: Option<u64>,
}

/// The listeners of every namespace that can be asked.
pub fn listeners() -> Result<Vec<Listener>> {
    let namespaces = measured(namespaces::all)?;
    let asked = namespaces::in_each(&namespaces, |namespace| {
        measured(|| listeners_of_this_thread(namespace.inode))
    })?;
    // A namespace that refuses hides its listeners; the others are still worth having.
    Ok(asked
        .into_iter()
        .filter_map(|asked| asked.flatten().ok())
        .flatten()
        .collect())
}

fn listeners_of_this_thread(netns: u32) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        dump(family, StateFlags::LISTEN, |socket| {
            listeners.push(listener(netns, socket));
        })?;
    }
    Ok(listeners)
}

fn listener(netns: u32, socket: &InetResponse) -> Listener {
    let id = &socket.header.socket_id;
    let is_v6_only = |attribute: &Nla| matches!(attribute, Nla::SkV6Only(true));
    Listener {
        netns,
        local: (id.source_address.to_canonical(), id.source_port),
        ino: u64::from(socket.header.inode),
        is_v6_only: socket.nlas.iter().any(is_v6_only),
        is_bound: id.interface_id != 0,
        cgroup: socket.nlas.iter().find_map(cgroup),
    }
}

/// Adds the open connections of the namespace that this thread is in: all, or none.
fn add_of_this_thread(netns: u32, connections: &mut Vec<OpenConnection>) -> Result<()> {
    let before = connections.len();
    let added = add(netns, connections);
    if added.is_err() {
        connections.truncate(before);
    }
    added
}

fn add(netns: u32, connections: &mut Vec<OpenConnection>) -> Result<()> {
    for family in [AF_INET, AF_INET6] {
        dump(family, connected(), |socket| {
            connections.push(connection(netns, socket));
        })
        .with_context(|| format!("list sockets of network namespace {netns}"))?;
    }
    Ok(())
}

/// The states that are listed, one bit each by their number.
pub const LISTED: u32 = {
    let small = 1 << TCP_TIME_WAIT | 1 << TCP_SYN_RECV;
    0xffe & !(small | 1 << TCP_CLOSE | 1 << TCP_LISTEN)
};

/// All states but those of small sockets and of sockets that are of no use yet.
fn connected() -> StateFlags {
    StateFlags::all()
        - (StateFlags::TIME_WAIT | StateFlags::SYN_RECV | StateFlags::CLOSE | StateFlags::LISTEN)
}

/// Hands over all sockets of a family in one of these states, one by one: what the kernel says of each is kilobytes.
fn dump(family: u8, states: StateFlags, mut each: impl FnMut(&InetResponse)) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).context("open a netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket
        .send(&request(family, states), 0)
        .context("ask for sockets")?;
    loop {
        let (bytes, _kernel) = socket.recv_from_full().context("receive sockets")?;
        if take(&bytes, &mut each)? {
            return Ok(());
        }
    }
}

fn request(family: u8, states: StateFlags) -> Vec<u8> {
    let inet = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states,
        socket_id: if family == AF_INET {
            SocketId::new_v4()
        } else {
            SocketId::new_v6()
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(inet).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Takes the sockets out of one datagram; true if it was the last.
pub(crate) fn take(mut bytes: &[u8], each: &mut impl FnMut(&InetResponse)) -> Result<bool> {
    while !bytes.is_empty() {
        let message = <NetlinkMessage<SockDiagMessage>>::deserialize(bytes)
            .context("read the kernel's list of sockets")?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => {
                // Not `to_io`, which overflows for what is no errno.
                let errno = error.raw_code().wrapping_neg();
                return Err(io::Error::from_raw_os_error(errno))
                    .context("the kernel refused to list its sockets");
            }
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(socket)) => {
                each(&socket);
            }
            _ => {}
        }
        // Messages are aligned to four bytes.
        let length = usize::try_from(message.header.length)?.next_multiple_of(4);
        bytes = bytes.get(length.max(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn connection(netns: u32, socket: &InetResponse) -> OpenConnection {
    let id = &socket.header.socket_id;
    let info = socket.nlas.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    });
    OpenConnection {
        netns,
        local: (id.source_address.to_canonical(), id.source_port),
        remote: (id.destination_address.to_canonical(), id.destination_port),
        family: match (socket.header.family, id.source_address.to_canonical()) {
            (AF_INET, _) => "ipv4",
            (_, IpAddr::V4(_)) => "ipv4-mapped",
            (_, IpAddr::V6(_)) => "ipv6",
        },
        state: socket.header.state,
        ino: u64::from(socket.header.inode),
        cgroup: socket.nlas.iter().find_map(cgroup),
        is_server: match socket.header.state {
            TCP_SYN_SENT => Some(false),
            _ => info.and_then(|info| is_server(info, socket.header.send_queue)),
        },
        traffic: info
            .filter(|info| info.state != TCP_SYN_SENT)
            .map(|info| traffic(info, socket.header.send_queue)),
    }
}

/// The value of `INET_DIAG_CGROUP_ID`.
fn cgroup(attribute: &Nla) -> Option<u64> {
    const CGROUP_ID: u16 = 21;
    let mut bytes = [0; 8];
    if attribute.kind() != CGROUP_ID || attribute.value_len() != bytes.len() {
        return None;
    }
    attribute.emit_value(&mut bytes);
    Some(u64::from_ne_bytes(bytes))
}

/// Bytes of data; the kernel counts the peer's FIN as one, too.
const fn bytes_received(info: &TcpInfo) -> u64 {
    let has_fin = matches!(info.state, TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING);
    info.bytes_received.saturating_sub(has_fin as u64)
}

/// How many sequence numbers were sent: those acknowledged, and those on their way of the `queued` ones that were written.
fn numbers(info: &TcpInfo, queued: u32) -> Option<u64> {
    let on_its_way = queued.checked_sub(info.notsent_bytes)?;
    Some(info.bytes_acked + u64::from(on_its_way))
}

/// Bytes of data, each once. What does not get past this machine is sent anew, and counted anew as if it were other data:
/// no more can have been sent than was acknowledged or waits for that.
fn bytes_sent(info: &TcpInfo, queued: u32) -> u64 {
    let numbered = numbers(info, queued).unwrap_or(info.bytes_acked);
    let sent = info.bytes_sent.saturating_sub(info.bytes_retrans);
    // The number of a SYN may be among them.
    if sent > numbered {
        numbered.saturating_sub(1)
    } else {
        sent
    }
}

/// Whether a connection was accepted: who opens one has one number more acknowledged than there are bytes, that of his
/// SYN; the kernel makes an accepted socket when that was acknowledged already. What was sent but could not leave this
/// machine is counted each time, so that nothing can be told of such a connection.
fn is_server(info: &TcpInfo, send_queue: u32) -> Option<bool> {
    let has_closed = matches!(
        info.state,
        TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSING | TCP_LAST_ACK
    );
    if has_closed && info.notsent_bytes > 0 {
        // Whether the FIN is among what was sent is not told.
        return None;
    }
    let bytes = info.bytes_sent.checked_sub(info.bytes_retrans)?;
    match numbers(info, send_queue)?.checked_sub(bytes + u64::from(has_closed))? {
        0 => Some(true),
        1 => Some(false),
        _ => None,
    }
}

/// `queued` bytes were written and not acknowledged.
fn traffic(info: &TcpInfo, queued: u32) -> Traffic {
    let [sent, received] = [info.last_data_sent, info.last_data_recv]
        .map(|millis| Duration::from_millis(u64::from(millis)));
    let bytes_sent = bytes_sent(info, queued);
    let bytes_received = bytes_received(info);
    let age = if bytes_sent == 0 {
        Some(sent)
    } else if bytes_received == 0 {
        Some(received)
    } else {
        None
    };
    let busy = Duration::from_micros(info.busy_time);
    Traffic {
        age,
        least_age: age.unwrap_or_else(|| sent.max(received).max(busy)),
        idle: sent.min(received),
        bytes_sent,
        bytes_received,
        retransmits: info.total_retrans,
        srtt_us: info.rtt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    #[test]
    fn both_ends_of_an_open_connection_are_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            if dump(family, connected(), |socket| found.push(socket.clone())).is_err() {
                println!("SKIP this kernel does not list sockets");
                return;
            }
        }
        for (end, is_server) in [(&near, false), (&far, true)] {
            let local = end.local_addr().unwrap();
            let listed = found
                .iter()
                .map(|socket| connection(1, socket))
                .find(|open| open.local == (local.ip(), local.port()) && open.state == 1)
                .unwrap();
            assert_eq!(listed.is_server, Some(is_server));
            let traffic = listed.traffic.unwrap();
            assert_eq!((traffic.bytes_sent, traffic.bytes_received), (0, 0));
            assert_eq!(traffic.age, Some(traffic.least_age));
        }
    }
    #[test]
    fn the_end_of_the_stream_is_no_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        io::Write::write_all(&mut &near, &[0; 400]).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        far.read_to_end(&mut Vec::new()).unwrap();
        let mut found = Vec::new();
        if dump(AF_INET, connected(), |socket| found.push(socket.clone())).is_err() {
            println!("SKIP this kernel does not list sockets");
            return;
        }
        let peer = near.local_addr().unwrap().port();
        let listed = found
            .iter()
            .map(|socket| connection(1, socket))
            .find(|open| open.remote.1 == peer && open.state == TCP_CLOSE_WAIT)
            .unwrap();
        assert_eq!(listed.traffic.unwrap().bytes_received, 400);
    }

    #[test]
    fn who_opened_a_connection_is_told_by_the_number_of_its_syn() {
        let info = |state, acked, sent, again, unsent| TcpInfo {
            state,
            bytes_acked: acked,
            bytes_sent: sent,
            bytes_retrans: again,
            notsent_bytes: unsent,
            ..TcpInfo::parse(&[0; 512]).unwrap()
        };
        let cases = [
            // Idle, after data, with data on its way and more behind it.
            (info(1, 1, 0, 0, 0), 0, Some(false)),
            (info(1, 0, 0, 0, 0), 0, Some(true)),
            (info(1, 127_977, 184_296, 56_320, 3000), 3000, Some(false)),
            (info(1, 100, 400, 0, 50), 350, Some(true)),
            // The FIN has a number, too, once it is sent.
            (info(TCP_FIN_WAIT2, 102, 100, 0, 0), 0, Some(false)),
            (info(TCP_LAST_ACK, 100, 100, 0, 0), 1, Some(true)),
            (info(TCP_FIN_WAIT1, 100, 100, 0, 9), 10, None),
            // Bytes that were counted and did not leave.
            (info(1, 1, 5000, 0, 1000), 1000, None),
        ];
        for (info, send_queue, expected) in cases {
            assert_eq!(is_server(&info, send_queue), expected, "{info:?}");
        }
    }
}
