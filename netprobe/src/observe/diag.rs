//! The TCP sockets of a network namespace, added up while the kernel lists them (`sock_diag`):
//! listeners with their queues, local ports in use for each destination, half-open handshakes, and
//! connections that are open but quiet.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
};

use anyhow::Result;

use super::netlink::{self, attributes, u32_at};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
/// Length of `struct inet_diag_msg`, after which attributes begin.
const MESSAGE: usize = 72;

const ESTABLISHED: u8 = 1;
const SYN_RECV: u8 = 3;
const TIME_WAIT: u8 = 6;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;
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

/// Most round-trip times that are kept of one address.
const LONGEST: usize = 64;
/// Data went over an active connection in the last second.
const ACTIVE_MS: u32 = 1000;
/// A round-trip time of so many times its minimum is spent in a queue.
pub const SWOLLEN: u32 = 3;
/// A minimum below this is within a machine, where scheduling alone makes it swing.
pub const LOCAL_US: u32 = 1000;
/// Less than this may be acknowledgements that the peer delays (40 ms, TCP_DELACK_MIN).
const DELAYED_US: u32 = 50_000;
/// So many segments in flight are acknowledged at once, two by two.
const TRAIN: u32 = 10;

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
    /// How long each connection that nobody has accepted yet waits so far, in milliseconds; up to a
    /// bound. The queue is first in, first out.
    pub waiting_ms: Vec<u32>,
    /// Established connections that were accepted.
    pub established: u32,
    /// Of those, quiet ones (see [`QUIET_MS`]).
    pub quiet: u32,
    /// The longest time without data over one that was accepted, in milliseconds.
    pub quietest_ms: u32,
    /// Quiet ones by client address, up to a bound.
    pub quiet_clients: BTreeMap<IpAddr, u32>,
    /// Closed by the client, but not by the application.
    pub close_wait: u32,
    /// Closed here first, and waiting.
    pub time_wait: u32,
    /// Addresses whose handshakes were finished, up to a bound.
    pub sources: HashSet<IpAddr>,
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
}

/// Round-trip times to one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Connections.
    pub connections: u32,
    /// Connections over which data went in the last second.
    pub active: u32,
    /// Of the active ones, those whose round trip is a large multiple of its own minimum (see
    /// [`SWOLLEN`]).
    pub swollen: u32,
    /// Of the swollen ones, those with many segments in flight: they fill a queue, and none of their
    /// acknowledgements is delayed by the peer for want of data.
    pub filling: u32,
    /// Smoothed round-trip times in microseconds, up to a bound.
    pub srtts_us: Vec<u32>,
    /// The smallest round-trip time that was ever measured, in microseconds; 0 is unknown.
    pub min_rtt_us: u32,
}

impl Path {
    fn add(&mut self, info: Info) {
        self.connections += 1;
        if self.srtts_us.len() < LONGEST {
            self.srtts_us.push(info.srtt_us);
        }
        if info.min_rtt_us == 0 {
            return;
        }
        if self.min_rtt_us == 0 || info.min_rtt_us < self.min_rtt_us {
            self.min_rtt_us = info.min_rtt_us;
        }
        let is_active = info.idle_ms <= ACTIVE_MS;
        let is_swollen = is_active
            && info.min_rtt_us >= LOCAL_US
            && info.srtt_us / SWOLLEN >= info.min_rtt_us
            && info.srtt_us - info.min_rtt_us >= DELAYED_US;
        self.active += u32::from(is_active);
        self.swollen += u32::from(is_swollen);
        self.filling += u32::from(is_swollen && info.in_flight >= TRAIN && info.backed_off == 0);
    }
}

/// The sockets of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SocketTable {
    /// Listening sockets.
    pub listeners: Vec<Listener>,
    /// How many sockets there are in each state.
    pub states: [u64; STATES],
    /// Local ports in use, for connections that were opened here.
    pub ports: HashMap<Destination, Ports>,
    /// Clients by listening port.
    pub clients: HashMap<u16, Clients>,
    /// Round-trip times by remote address.
    pub paths: HashMap<IpAddr, Path>,
    /// How quiet connections that were opened here are, by address and port of the service.
    pub quietness: HashMap<(IpAddr, u16), Quietness>,
    /// Connections over a path of some length that have sent much and pause now: after such a pause
    /// the congestion window begins anew.
    pub pausing: u64,
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
        if served.contains(&socket.local_port) {
            self.add_client(socket);
        } else {
            self.add_ports(socket);
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
        clients.open += u32::from(socket.info.is_some() && socket.state != SYN_RECV);
        if let Some(waiting_ms) = socket.waiting_ms() {
            if clients.waiting_ms.len() < MOST_WAITING {
                clients.waiting_ms.push(waiting_ms);
            }
            return;
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
                let idle_ms = socket.info.map_or(0, |info| info.idle_ms);
                clients.quietest_ms = clients.quietest_ms.max(idle_ms);
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
        } else {
            ports.open += 1;
        }
        if let (ESTABLISHED, Some(info)) = (socket.state, socket.info) {
            self.add_quietness(socket, info);
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

/// What the kernel says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    state: u8,
    timer: u8,
    local: IpAddr,
    local_port: u16,
    remote: IpAddr,
    remote_port: u16,
    receive_queue: u32,
    send_queue: u32,
    ino: u32,
    info: Option<Info>,
}

impl Socket {
    /// How long it waits to be accepted. Nobody holds it yet, so it has no inode; and nobody has sent
    /// anything over it, so it counts from the end of the handshake, where `tcp_create_openreq_child`
    /// set the time of the last data sent.
    fn waiting_ms(&self) -> Option<u32> {
        let is_waiting = self.ino == 0 && matches!(self.state, ESTABLISHED | CLOSE_WAIT);
        self.info
            .filter(|_| is_waiting)
            .map(|info| info.since_sent_ms)
    }
}

/// Of `struct tcp_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    /// Since data went either way.
    idle_ms: u32,
    /// Since data was sent, or the connection was made.
    since_sent_ms: u32,
    /// Since the peer acknowledged anything.
    unheard_ms: u32,
    srtt_us: u32,
    min_rtt_us: u32,
    rto_us: u32,
    bytes_acked: u64,
    /// Segments sent and not acknowledged.
    in_flight: u32,
    /// Timeouts in a row.
    backed_off: u8,
}

/// Hands over every socket of both families in one of the `states`.
fn visit(states: u32, mut each: impl FnMut(&Socket)) -> Result<()> {
    for family in [AF_INET, AF_INET6] {
        netlink::list(
            NETLINK_SOCK_DIAG,
            SOCK_DIAG_BY_FAMILY,
            &request(family, states),
            |message| {
                if let Some(socket) = parse(message) {
                    each(&socket);
                }
            },
        )?;
    }
    Ok(())
}

/// `struct inet_diag_req_v2`
fn request(family: u8, states: u32) -> Vec<u8> {
    let extensions = if states == 1 << LISTEN {
        0
    } else {
        1 << (INET_DIAG_INFO - 1)
    };
    let mut request = vec![family, IPPROTO_TCP, extensions, 0];
    request.extend(states.to_ne_bytes());
    request.extend([0; 40]);
    // INET_DIAG_NOCOOKIE
    request.extend([0xff; 8]);
    request
}

/// `struct inet_diag_msg` and its attributes.
pub(crate) fn parse(message: &[u8]) -> Option<Socket> {
    let family = *message.first()?;
    let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let address = |at: usize| {
        let bytes: [u8; 16] = *message.get(at..)?.first_chunk()?;
        Some(match family {
            AF_INET => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
            _ => Ipv6Addr::from(bytes).to_canonical(),
        })
    };
    Some(Socket {
        state: *message.get(1)?,
        timer: *message.get(2)?,
        local_port: port(4)?,
        remote_port: port(6)?,
        local: address(8)?,
        remote: address(24)?,
        receive_queue: u32_at(message, 56)?,
        send_queue: u32_at(message, 60)?,
        ino: u32_at(message, 68)?,
        info: attributes(message.get(MESSAGE..)?)
            .find_map(|(kind, value)| (kind == INET_DIAG_INFO).then(|| info(value)))
            .flatten(),
    })
}

/// Times since data was last sent and received, and round-trip times.
fn info(bytes: &[u8]) -> Option<Info> {
    Some(Info {
        since_sent_ms: u32_at(bytes, 44)?,
        idle_ms: u32_at(bytes, 44)?.min(u32_at(bytes, 52)?),
        unheard_ms: u32_at(bytes, 56)?,
        srtt_us: u32_at(bytes, 68)?,
        min_rtt_us: u32_at(bytes, 148).unwrap_or(0),
        rto_us: u32_at(bytes, 8)?,
        bytes_acked: netlink::u64_at(bytes, 120).unwrap_or(0),
        in_flight: u32_at(bytes, 24)?,
        backed_off: *bytes.get(2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    #[expect(clippy::too_many_lines, reason = "a straight table of cases")]
    fn only_active_connections_with_a_long_queue_before_them_are_swollen() {
        let far = Info {
            idle_ms: 0,
            since_sent_ms: 0,
            unheard_ms: 0,
            srtt_us: 122_000,
            min_rtt_us: 30_000,
            rto_us: 300_000,
            bytes_acked: 0,
            in_flight: 100,
            backed_off: 0,
        };
        let cases = [
            (far, (1, 1)),
            (
                Info {
                    in_flight: 1,
                    ..far
                },
                (1, 0),
            ),
            // A timeout is no queue.
            (
                Info {
                    backed_off: 1,
                    ..far
                },
                (1, 0),
            ),
            (
                Info {
                    idle_ms: 5000,
                    ..far
                },
                (0, 0),
            ),
            // Within a machine.
            (
                Info {
                    min_rtt_us: 40,
                    ..far
                },
                (0, 0),
            ),
            (
                Info {
                    srtt_us: 70_000,
                    ..far
                },
                (0, 0),
            ),
            // A delayed acknowledgement.
            (
                Info {
                    srtt_us: 45_000,
                    min_rtt_us: 5000,
                    ..far
                },
                (0, 0),
            ),
        ];
        for (info, expected) in cases {
            let mut path = Path::default();
            path.add(info);
            assert_eq!((path.swollen, path.filling), expected, "{info:?}");
        }
    }

    #[test]
    fn cut_messages_are_no_sockets() {
        for length in 0..MESSAGE {
            assert_eq!(parse(&vec![AF_INET; length]), None, "{length}");
        }
        assert!(parse(&[AF_INET; MESSAGE]).is_some());
        assert_eq!(info(&[0; 60]), None);
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
        assert_eq!(clients_of.waiting_ms.len(), 3);
        assert!(clients_of.sources.contains(&address.ip()));
        let destination = Destination {
            local: address.ip(),
            remote: address.ip(),
            port: address.port(),
        };
        assert_eq!(table.ports[&destination].open, 3);
        let accepted = listener.accept().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let table = super::table().unwrap();
        let clients_of = &table.clients[&address.port()];
        assert_eq!((clients_of.open, clients_of.established), (3, 1));
        assert!(clients_of.waiting_ms.iter().all(|waited| *waited >= 20));
        drop((clients, accepted));
    }
}
