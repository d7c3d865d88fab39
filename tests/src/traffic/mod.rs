//! Connections and packets that provoke an incident a known number of times.
//!
//! The ends are those of a [`crate::netns::Cable`]. Sockets belong to the namespace of the thread
//! that makes them, so make them inside [`crate::netns::Netns::run`].

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use socket2::{Domain, Protocol, Socket, Type};

pub mod offload;
pub mod packet;
pub mod storm;

/// Addresses of the connecting end.
pub const CLIENT: (Ipv4Addr, Ipv6Addr) = ends(1);
/// Addresses of the listening end.
pub const SERVER: (Ipv4Addr, Ipv6Addr) = ends(2);

const fn ends(host: u16) -> (Ipv4Addr, Ipv6Addr) {
    let [_, low] = host.to_be_bytes();
    (
        Ipv4Addr::new(10, 77, 0, low),
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host),
    )
}

/// What a connection's socket and packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4 packets of an IPv6 socket.
    Mapped,
}

impl Family {
    /// Every family that a socket can have.
    pub const OF_SOCKETS: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];
    /// Every family that a packet can have.
    pub const OF_PACKETS: [Self; 2] = [Self::V4, Self::V6];

    /// Its name in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
            Self::Mapped => "ipv4-mapped",
        }
    }

    /// A port of its own for each family, from `base` on.
    pub const fn port(self, base: u16) -> u16 {
        base + self as u16
    }

    /// The address of an end as events show it.
    pub fn shown(self, end: (Ipv4Addr, Ipv6Addr)) -> String {
        match self {
            Self::V4 | Self::Mapped => end.0.to_string(),
            Self::V6 => end.1.to_string(),
        }
    }

    /// The address of an end as a socket of this family wants it.
    pub const fn wanted(self, end: (Ipv4Addr, Ipv6Addr), port: u16) -> SocketAddr {
        let address = match self {
            Self::V4 => IpAddr::V4(end.0),
            Self::V6 => IpAddr::V6(end.1),
            Self::Mapped => IpAddr::V6(end.0.to_ipv6_mapped()),
        };
        SocketAddr::new(address, port)
    }

    /// A new TCP socket.
    pub fn socket(self) -> Socket {
        let domain = match self {
            Self::V4 => Domain::IPV4,
            Self::V6 | Self::Mapped => Domain::IPV6,
        };
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).expect("make a socket")
    }

    /// Listens at the server's address (mapped: at all addresses, as dual-stack servers do).
    pub fn listen(self, port: u16, backlog: i32) -> Socket {
        let socket = self.socket();
        let address = match self {
            Self::Mapped => (Ipv6Addr::UNSPECIFIED, port).into(),
            Self::V4 | Self::V6 => self.wanted(SERVER, port),
        };
        socket.set_reuse_address(true).expect("reuse the address");
        socket.bind(&address.into()).expect("bind the listener");
        socket.listen(backlog).expect("listen");
        socket
    }

    /// The address that [`Family::listen`] listens at, as events show it.
    pub fn listener_shown(self) -> String {
        match self {
            Self::Mapped => "::".into(),
            Self::V4 | Self::V6 => self.shown(SERVER),
        }
    }

    /// Connects to the server and waits for the outcome.
    pub fn connect(self, port: u16) -> io::Result<Socket> {
        let socket = self.socket();
        self.connect_with(&socket, port)?;
        Ok(socket)
    }

    /// As [`Family::connect`], with a socket that may have failed before.
    pub fn connect_with(self, socket: &Socket, port: u16) -> io::Result<()> {
        socket.connect(&self.wanted(SERVER, port).into())
    }

    /// Begins to connect to the server, without waiting for the outcome.
    pub fn begin(self, port: u16) -> Socket {
        let socket = self.socket();
        self.begin_with(&socket, port);
        socket
    }

    /// As [`Family::begin`], with a socket that has options of its own.
    pub fn begin_with(self, socket: &Socket, port: u16) {
        socket.set_nonblocking(true).expect("do not block");
        match self.connect_with(socket, port) {
            Ok(()) => {}
            Err(why) if why.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(why) => panic!("begin to connect: {why}"),
        }
    }

    /// A connection through `listener`, both ends: the client's and the server's.
    pub fn pair(self, client: &crate::netns::Netns, listener: &Socket) -> (Socket, Socket) {
        let port = port_of(listener);
        let near = client.run(|| self.connect(port)).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        (near, far)
    }
}

/// The local port of a socket.
pub fn port_of(socket: &Socket) -> u16 {
    let address = socket.local_addr().expect("the socket has an address");
    address.as_socket().expect("an internet address").port()
}

/// Connections that wait to be accepted from `listener`.
pub fn accept_queue(listener: &Socket) -> u32 {
    // SAFETY: all zeroes is a valid `tcp_info`.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = u32::try_from(size_of_val(&info)).expect("it is short");
    // SAFETY: the kernel writes at most `length` bytes to `info`.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "TCP_INFO: {}", io::Error::last_os_error());
    // Of a listener, this is `sk_ack_backlog`.
    info.tcpi_unacked
}

/// Whether the handshake has come to its end, as far as this socket knows.
pub fn is_connected(socket: &Socket) -> bool {
    socket.peer_addr().is_ok()
}

/// Ends a connection with a reset, after which none of its timers runs.
pub fn abort(socket: Socket) {
    let zero = Some(std::time::Duration::ZERO);
    socket.set_linger(zero).expect("reset at close");
    drop(socket);
}
