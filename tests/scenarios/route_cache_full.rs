//! More IPv6 destinations than the cache of routes may hold: fatal on kernels that keep to that limit, and
//! nothing on those that only have the setting (6.3 and later, and long-term series that took that over).

use std::{
    io::ErrorKind,
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use netprobe_tests::{netns::Cable, skip::is_root, wait_until};

use crate::verdict::Verdict;

const ID: &str = "route-cache-full";
const LIMIT: &str = "net.ipv6.route.max_size";
const PORT: u16 = 7310;
/// Each has a route, and so an entry, of its own.
const DESTINATIONS: u16 = 200;
const HOLDS: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(1);

/// Destinations on the server, which each take an entry of the client's cache.
fn many_destinations() -> Cable {
    let cable = Cable::new();
    cable.server.ip("route add local fd78::/64 dev lo\n");
    let routes =
        (1..=DESTINATIONS).map(|number| format!("route add {}/128 via fd77::2\n", address(number)));
    cable.client.ip(&routes.collect::<String>());
    cable
}

fn address(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number)
}

#[test]
fn destinations_beyond_the_limit_are_blamed_only_where_the_kernel_keeps_to_it() {
    if !is_root() {
        return;
    }
    let cable = many_destinations();
    cable.client.sysctl(LIMIT, HOLDS);
    let listener = cable
        .server
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).expect("listen"));
    thread::spawn(move || listener.incoming().for_each(drop));
    let (is_over, failed, rounds) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let visit = || {
        cable.client.enter();
        while !is_over.load(Ordering::Relaxed) {
            for number in 1..=DESTINATIONS {
                let to = SocketAddr::from((address(number), PORT));
                let visited = TcpStream::connect_timeout(&to, PATIENCE);
                // A busy machine may take too long.
                if visited.is_err_and(|error| error.kind() == ErrorKind::NetworkUnreachable) {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
            rounds.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        scope.spawn(visit);
        wait_until("every destination was visited", || {
            rounds.load(Ordering::Relaxed) > 0
        });
        let verdict = Verdict::next(&[cable.client.inum().into()]);
        is_over.store(true, Ordering::Relaxed);
        if failed.load(Ordering::Relaxed) == 0 {
            verdict.lacks(ID);
        } else {
            verdict.first(ID).is_fixed_by("sysctl", LIMIT);
        }
    });
}
