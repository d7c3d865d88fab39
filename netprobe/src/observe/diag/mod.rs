//! The TCP sockets of a network namespace, added up while the kernel lists them (`sock_diag`):
//! listeners with their queues, local ports in use for each destination, half-open handshakes, and
//! connections that are open but quiet.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use anyhow::Result;

mod ages;
mod late;
mod path;
mod queued;
mod socket;
mod unread;

pub use ages::Ages;
pub use late::{LATE_MS, Late, late};
pub use path::{LOCAL_US, Path, SWOLLEN, TRAIN};
pub use queued::Queued;
#[cfg(any(test, fuzzing))]
pub(crate) use socket::parse;
use socket::{Info, Socket, visit};
pub use unread::{UNREAD_MS, Unread};

const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const FIN_WAIT_1: u8 = 4;
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
/// States in which data or a FIN may wait for its acknowledgement.
const SENDING: [u8; 5] = [ESTABLISHED, FIN_WAIT_1, CLOSE_WAIT, LAST_ACK, CLOSING];
/// `idiag_timer` of a socket that waits for an acknowledgement.
const RETRANSMIT: u8 = 1;
/// `idiag_timer` of a socket that probes a window that is closed.
const PERSIST: u8 = 4;
/// `idiag_timer` of a socket that waits to send a keepalive probe.
const KEEPALIVE: u8 = 2;
/// Longer after the last data than the peer acknowledges it: what is heard then answers a probe.
const ANSWERED_MS: u32 = 500;
/// Number of TCP states.
pub const STATES: usize = 13;

/// Most destinations, listeners and peers that are told apart.
const LARGEST: usize = 4096;
/// Most waiting connections of a port whose times are kept: the longest queue there can be.
const MOST_WAITING: usize = 65_536;
/// A connection is quiet when no data went over it for this long.
pub const QUIET_MS: u32 = 10_000;

/// A connection whose peer was heard of since is in use.
const UNHEARD_MS: u32 = 1000;

/// On shorter paths a congestion window grows back before anybody notices.
const LONG_PATH_US: u32 = 5000;
/// A connection that has sent less never had a large congestion window.
const MUCH: u64 = 128 << 10;

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Address that it listens on.
    pub address: IpAddr,
    /// Port that it listens on.
    pub port: u16,
    /// Inode number of the socket.
    pub ino: u64,
    /// Connections that wait to be accepted.
    pub queue: u32,
    /// Its limit: the smaller of the `listen()` argument and somaxconn, when `listen` was called.
    pub limit: u32,
    /// Whether a wildcard of IPv6 leaves IPv4 alone (IPV6_V6ONLY).
    pub is_v6_only: bool,
}

impl Listener {
    /// Whether connections to an address come to it: a wildcard takes those of its own family, and that
    /// of IPv6 those of IPv4 as well, unless it is told not to.
    pub fn takes(&self, address: IpAddr) -> bool {
        match self.address {
            IpAddr::V4(any) if any.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(any) if any.is_unspecified() => address.is_ipv6() || !self.is_v6_only,
            own => own == address,
        }
    }
}

/// What local ports are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Local address.
    pub local: IpAddr,
    /// Address of the service.
    pub remote: IpAddr,
    /// Port of the service.
    pub port: u16,
}

/// Local ports of one destination, by what holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// By TIME_WAIT, where the kernel could take them back.
    pub time_wait: u32,
    /// By open connections.
    pub open: u32,
    /// Of all, those with an odd number: the kernel prefers even ones for `connect`.
    pub odd: u32,
    /// When those in `TIME_WAIT` came there.
    pub ages: Ages,
}

impl Ports {
    /// All of them.
    pub const fn used(&self) -> u32 {
        self.time_wait + self.open
    }
}

/// What is known of the clients of one listening port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Handshakes that wait for the client's ACK.
    pub half_open: u32,
    /// Addresses that they come from, up to a bound.
    pub half_open_sources: HashSet<IpAddr>,
    /// Connections in any state that the kernel still has whole, accepted or not; without TIME_WAIT.
    pub open: u32,
    /// Connections that were accepted and that the application has not closed, whatever the client did.
    pub held: u32,
    /// How long each connection that nobody has accepted yet waits so far, in milliseconds; up to a
    /// bound. The queue is first in, first out.
    pub waiting_ms: Vec<u32>,
    /// Of those, ones whose client has closed meanwhile: nobody waits there.
    pub hung_up: u32,
    /// Established connections that were accepted.
    pub established: u32,
    /// Of those, quiet ones (see [`QUIET_MS`]).
    pub quiet: u32,
    /// The longest time without data over one that was accepted, in milliseconds.
    pub quietest_ms: u32,
    /// Quiet ones by client address, up to a bound.
    pub quiet_clients: BTreeMap<IpAddr, u32>,
    /// Accepted ones with requests that nobody reads.
    pub unread: Unread,
    /// Accepted ones over which data went in the last [`UNREAD_MS`].
    pub served: u32,
    /// Of those that the application holds, the ones whose last request it has read and not answered for [`QUIET_MS`] or more;
    /// up to a bound.
    pub silent: Vec<Silent>,
    /// Accepted ones whose client takes no more of what it is sent.
    pub zero_window: ZeroWindow,
    /// Accepted ones whose request is on its way for long.
    pub slow_requests: SlowRequests,
    /// Closed by the client, but not by the application.
    pub close_wait: u32,
    /// Closed here first, and waiting.
    pub time_wait: u32,
    /// Addresses whose handshakes were finished, up to a bound.
    pub sources: HashSet<IpAddr>,
}

/// Connections whose peer has closed its window for [`UNREAD_MS`] or more, with data that waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroWindow {
    /// How many.
    pub connections: u32,
    /// The longest time since data was sent, in milliseconds.
    pub longest_ms: u32,
    /// Bytes that wait, in all.
    pub bytes: u64,
}

impl ZeroWindow {
    fn add(&mut self, socket: &Socket) {
        let since_ms = socket.zero_window_ms().unwrap_or(0);
        if since_ms >= UNREAD_MS {
            self.connections += 1;
            self.longest_ms = self.longest_ms.max(since_ms);
            self.bytes += u64::from(socket.send_queue);
        }
    }
}

/// Connections over which less than a request came in [`QUIET_MS`] or more, though something comes: nothing was sent since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlowRequests {
    /// How many.
    pub connections: u32,
    /// The longest time since anything was sent over one, or it was made, in milliseconds.
    pub longest_ms: u32,
    /// The most bytes that came over one in all.
    pub most_bytes: u64,
    /// By client address, up to a bound.
    pub clients: BTreeMap<IpAddr, u32>,
}

impl SlowRequests {
    fn add(&mut self, socket: &Socket) {
        let Some(info) = socket.info.filter(Info::is_slow_request) else {
            return;
        };
        self.connections += 1;
        self.longest_ms = self.longest_ms.max(info.since_sent_ms);
        self.most_bytes = self.most_bytes.max(info.bytes_received);
        if self.clients.len() < LARGEST {
            *self.clients.entry(socket.remote).or_default() += 1;
        }
    }
}

impl Clients {
    /// Quiet connections, but for those whose requests may have waited in the queue for most of that time.
    pub fn quiet_since_accepted(&self) -> u32 {
        let waited_ms = self.waiting_ms.iter().copied().max().unwrap_or(0);
        let waited = self.silent.iter();
        let waited = waited.filter(|silent| silent.ms < QUIET_MS + waited_ms);
        let waited = u32::try_from(waited.count()).unwrap_or(u32::MAX);
        self.quiet.saturating_sub(waited)
    }
}

/// A connection over which nothing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    /// Since when, in milliseconds.
    pub ms: u32,
    /// Inode number of the socket.
    pub ino: u64,
}

/// How quiet the open connections to one service are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quietness {
    /// Open connections.
    pub connections: u32,
    /// Of those, ones over which no data went for a while, but whose keepalive probes were answered meanwhile.
    pub kept_alive: u32,
    /// The longest time without data, in milliseconds.
    pub quietest_ms: u32,
    /// Connections whose peer was heard of just now.
    pub heard: u32,
}

/// A connection that waits for an acknowledgement after a timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unanswered {
    /// Timeouts in a row.
    pub timeouts: u8,
    /// How long the peer had not been heard of when what is not acknowledged was first sent, in milliseconds.
    pub quiet_ms: u32,
}

/// After so many timeouts in a row nothing is thought to come any more.
pub const IN_VAIN: u8 = 3;

/// The sockets of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SocketTable {
    /// Listening sockets.
    pub listeners: Vec<Listener>,
    /// How many sockets there are in each state.
    pub states: [u64; STATES],
    /// Local ports in use, for connections that were opened here.
    pub ports: HashMap<Destination, Ports>,
    /// Connections that were opened here, in any state that the kernel still has whole, by port of the
    /// service.
    pub outgoing: HashMap<u16, u32>,
    /// Clients by listening port.
    pub clients: HashMap<u16, Clients>,
    /// Round-trip times by remote address.
    pub paths: HashMap<IpAddr, Path>,
    /// How quiet connections that were opened here are, by address and port of the service.
    pub quietness: HashMap<(IpAddr, u16), Quietness>,
    /// Connections that were opened here and wait for nothing, by address and port of the service and by local port: how
    /// long their peer has not been heard of, in milliseconds, where that is over a second; up to a bound.
    pub unheard_ms: HashMap<(IpAddr, u16, u16), u32>,
    /// Connections that were opened here and wait for an acknowledgement after a timeout, also those that their process
    /// has closed, by the same; up to a bound.
    pub unanswered: HashMap<(IpAddr, u16, u16), Unanswered>,
    /// Connections over a path of some length that have sent much and pause now: after such a pause
    /// the congestion window begins anew.
    pub pausing: u64,
    /// Inode numbers of sockets with data that waits until the peer takes more; up to a bound.
    pub held_up: Vec<u64>,
    /// What waits in queues, by whether its connections were accepted here, and by port of the service.
    pub queued: HashMap<(bool, u16), Queued>,
    /// Sockets that found the tables above full.
    pub untracked: u64,
}

/// The listeners of the namespace that this thread is in.
pub fn listeners() -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    visit(1 << LISTEN, |socket| {
        if listeners.len() < LARGEST {
            listeners.push(Listener {
                address: socket.local,
                port: socket.local_port,
                ino: u64::from(socket.ino),
                queue: socket.receive_queue,
                limit: socket.send_queue,
                is_v6_only: socket.is_v6_only,
            });
        }
    })?;
    Ok(listeners)
}

/// All sockets of the namespace that this thread is in.
pub fn table() -> Result<SocketTable> {
    let mut table = SocketTable {
        listeners: listeners()?,
        ..SocketTable::default()
    };
    let served: HashSet<u16> = table
        .listeners
        .iter()
        .map(|listener| listener.port)
        .collect();
    visit(!(1 << LISTEN), |socket| {
        table.add(socket, &served);
    })?;
    table.states[usize::from(LISTEN)] = table.listeners.len() as u64;
    Ok(table)
}

impl SocketTable {
    fn add(&mut self, socket: &Socket, served: &HashSet<u16>) {
        if let Some(count) = self.states.get_mut(usize::from(socket.state)) {
            *count += 1;
        }
        if let (ESTABLISHED, Some(info)) = (socket.state, socket.info) {
            self.add_path(socket.remote, info);
            let is_long = info.srtt_us >= LONG_PATH_US;
            let pauses = u64::from(info.idle_ms) * 1000 > u64::from(info.rto_us);
            self.pausing += u64::from(is_long && pauses && info.bytes_acked >= MUCH);
        }
        if let Some(info) = socket.unanswered()
            && let Some(path) = bounded(&mut self.paths, socket.remote, Path::default())
        {
            path.add_waiting(info);
            if info.backed_off >= IN_VAIN
                && let Some(bytes) = socket.waiting_bytes()
            {
                path.add_stuck(bytes);
            }
        }
        if socket.is_held_up() && socket.ino != 0 && self.held_up.len() < LARGEST {
            self.held_up.push(socket.ino.into());
        }
        let is_served = served.contains(&socket.local_port);
        self.add_queued(socket, is_served);
        if is_served {
            self.add_client(socket);
        } else {
            self.add_ports(socket);
        }
    }

    fn add_queued(&mut self, socket: &Socket, is_served: bool) {
        let port = if is_served {
            socket.local_port
        } else {
            socket.remote_port
        };
        if socket.queued() > 0
            && let Some(queued) = bounded(&mut self.queued, (is_served, port), Queued::default())
        {
            queued.add(socket);
        }
    }

    fn add_path(&mut self, remote: IpAddr, info: Info) {
        if let Some(path) = bounded(&mut self.paths, remote, Path::default()) {
            path.add(info);
        }
    }

    fn add_client(&mut self, socket: &Socket) {
        let Some(clients) = bounded(&mut self.clients, socket.local_port, Clients::default())
        else {
            self.untracked += 1;
            return;
        };
        let is_through = [ESTABLISHED, CLOSE_WAIT, TIME_WAIT].contains(&socket.state);
        if is_through && clients.sources.len() < LARGEST {
            clients.sources.insert(socket.remote);
        }
        let is_whole = socket.info.is_some() && socket.state != SYN_RECV;
        clients.open += u32::from(is_whole);
        // What waits has no inode yet, and what was closed has none any more.
        clients.held += u32::from(is_whole && socket.ino != 0);
        if let Some(waiting_ms) = socket.waiting_ms() {
            clients.hung_up += u32::from(socket.state == CLOSE_WAIT);
            if clients.waiting_ms.len() < MOST_WAITING {
                clients.waiting_ms.push(waiting_ms);
            }
            return;
        }
        clients.zero_window.add(socket);
        let idle_ms = socket.info.map_or(0, |info| info.idle_ms);
        if !clients.unread.add(socket) && socket.ino != 0 {
            clients.served += u32::from(idle_ms < UNREAD_MS);
            let is_asked = is_whole && socket.info.as_ref().is_some_and(Info::is_asked);
            if is_asked && idle_ms >= QUIET_MS && clients.silent.len() < MOST_WAITING {
                clients.silent.push(Silent {
                    ms: idle_ms,
                    ino: socket.ino.into(),
                });
            }
        }
        match socket.state {
            SYN_RECV => {
                clients.half_open += 1;
                if clients.half_open_sources.len() < LARGEST {
                    clients.half_open_sources.insert(socket.remote);
                }
            }
            ESTABLISHED => {
                clients.established += 1;
                clients.quietest_ms = clients.quietest_ms.max(idle_ms);
                clients.slow_requests.add(socket);
                if idle_ms >= QUIET_MS {
                    clients.quiet += 1;
                    if clients.quiet_clients.len() < LARGEST {
                        *clients.quiet_clients.entry(socket.remote).or_default() += 1;
                    }
                }
            }
            TIME_WAIT => clients.time_wait += 1,
            CLOSE_WAIT => clients.close_wait += 1,
            _ => {}
        }
    }

    fn add_ports(&mut self, socket: &Socket) {
        if socket.remote_port == 0 {
            return;
        }
        let destination = Destination {
            local: socket.local,
            remote: socket.remote,
            port: socket.remote_port,
        };
        let Some(ports) = bounded(&mut self.ports, destination, Ports::default()) else {
            self.untracked += 1;
            return;
        };
        ports.odd += u32::from(socket.local_port % 2);
        if socket.state == TIME_WAIT {
            ports.time_wait += 1;
            ports.ages.add(socket.timer_ms);
        } else {
            ports.open += 1;
        }
        if socket.info.is_some()
            && let Some(outgoing) = bounded(&mut self.outgoing, socket.remote_port, 0)
        {
            *outgoing += 1;
        }
        if let (ESTABLISHED, Some(info)) = (socket.state, socket.info) {
            self.add_quietness(socket, info);
        }
        if let Some(info) = socket.unanswered() {
            let connection = (socket.remote, socket.remote_port, socket.local_port);
            let unanswered = Unanswered::default();
            if let Some(unanswered) = bounded(&mut self.unanswered, connection, unanswered) {
                unanswered.timeouts = info.backed_off;
                unanswered.quiet_ms = info.quiet_before_ms();
            }
        }
    }

    fn add_quietness(&mut self, socket: &Socket, info: Info) {
        let service = (socket.remote, socket.remote_port);
        let Some(quietness) = bounded(&mut self.quietness, service, Quietness::default()) else {
            return;
        };
        quietness.connections += 1;
        quietness.quietest_ms = quietness.quietest_ms.max(info.idle_ms);
        let is_heard = info.idle_ms > info.unheard_ms.saturating_add(ANSWERED_MS);
        quietness.kept_alive += u32::from(socket.timer == KEEPALIVE && is_heard);
        let is_unheard = info.unheard_ms >= UNHEARD_MS;
        quietness.heard += u32::from(!is_unheard);
        if is_unheard && socket.timer != RETRANSMIT {
            let connection = (socket.remote, socket.remote_port, socket.local_port);
            if let Some(unheard_ms) = bounded(&mut self.unheard_ms, connection, 0) {
                *unheard_ms = info.unheard_ms;
            }
        }
    }
}

/// The entry of `key`, unless it is new and there is no room.
fn bounded<K: std::hash::Hash + Eq, V>(
    map: &mut HashMap<K, V>,
    key: K,
    first: V,
) -> Option<&mut V> {
    if map.len() >= LARGEST && !map.contains_key(&key) {
        return None;
    }
    Some(map.entry(key).or_insert(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn wildcards_take_their_family_and_that_of_ipv6_both_unless_told_otherwise() {
        let [v4, v6] = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap());
        for (address, is_v6_only, takes) in [
            ("0.0.0.0", false, [true, false]),
            ("::", false, [true, true]),
            ("::", true, [false, true]),
            ("10.0.0.1", false, [true, false]),
            ("fd00::2", false, [false, false]),
        ] {
            let listener = Listener {
                address: address.parse().unwrap(),
                port: 80,
                ino: 1,
                queue: 0,
                limit: 128,
                is_v6_only,
            };
            assert_eq!([v4, v6].map(|end| listener.takes(end)), takes, "{address}");
        }
    }

    #[test]
    fn a_listener_shows_its_queue_and_limit_and_its_clients() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let Ok(table) = table() else {
            println!("SKIP this kernel does not list sockets");
            return;
        };
        let listed = table
            .listeners
            .iter()
            .find(|listed| listed.port == address.port());
        let listed = listed.unwrap();
        assert_eq!((listed.queue, listed.address), (3, address.ip()));
        assert!(listed.limit >= 3);
        let clients_of = &table.clients[&address.port()];
        assert_eq!((clients_of.open, clients_of.established), (3, 0));
        assert_eq!((clients_of.waiting_ms.len(), clients_of.hung_up), (3, 0));
        assert!(clients_of.sources.contains(&address.ip()));
        let destination = Destination {
            local: address.ip(),
            remote: address.ip(),
            port: address.port(),
        };
        assert_eq!(table.ports[&destination].open, 3);
        assert_eq!(table.outgoing[&address.port()], 3);
        let accepted = listener.accept().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let table = super::table().unwrap();
        let clients_of = &table.clients[&address.port()];
        assert_eq!((clients_of.open, clients_of.established), (3, 1));
        assert_eq!(clients_of.held, 1);
        assert!(clients_of.waiting_ms.iter().all(|waited| *waited >= 20));
        // The first was accepted; of the two that wait one hangs up.
        let [first, second, last] = clients.try_into().unwrap();
        drop(last);
        let table = super::table().unwrap();
        let clients_of = &table.clients[&address.port()];
        assert_eq!((clients_of.waiting_ms.len(), clients_of.hung_up), (2, 1));
        drop((first, second, accepted));
    }
}
