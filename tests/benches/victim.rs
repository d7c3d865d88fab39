//! `cargo xtask bench victim`: what watching does to those who are watched, as pairs of slices with and
//! without netprobe. The result is in `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::{
    env,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{
    netns::Netns,
    process::cpu_time,
    ready::{end, start_unheard},
    traffic::abort,
};
use socket2::{Domain, Socket, Type};

/// Pairs of slices for each case, unless `NETPROBE_ROUNDS` says otherwise.
const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_secs(2);
/// What happens once, when a watcher comes, is not measured, but what it does from then on.
const SETTLING: Duration = Duration::from_millis(1500);
const PORT: u16 = 8080;
/// 2,000 local ports, of which so many are taken: 95 %.
const PORTS: &str = "30000 31999";
const TAKEN: usize = 1900;

/// Something that is done as often as it goes.
#[derive(Clone, Copy)]
enum Load {
    /// HTTP requests with a connection each.
    Requests,
    /// Connects that search for one of the few ports that are left.
    Searches,
}

struct Case {
    load: Load,
    /// What watches meanwhile.
    watcher: &'static [&'static str],
    /// The least that shall be left, in percent.
    bar: f64,
}

const CASES: &[Case] = &[
    Case {
        load: Load::Requests,
        watcher: &["diagnose", "--json"],
        bar: 99.0,
    },
    Case {
        load: Load::Searches,
        watcher: &["flame", "port-search", "--folded"],
        bar: 95.0,
    },
    Case {
        load: Load::Searches,
        watcher: &["connects", "--json"],
        bar: 95.0,
    },
    Case {
        load: Load::Searches,
        watcher: &["connects", "--count"],
        bar: 95.0,
    },
    Case {
        load: Load::Searches,
        watcher: &["diagnose", "--json"],
        bar: 95.0,
    },
];

fn main() {
    let rounds = env::var("NETPROBE_ROUNDS").ok();
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let wanted = env::args()
        .nth(1)
        .filter(|argument| !argument.starts_with("--"));
    // Each has its own, so that ports of the one are no matter for the other.
    let [requests, searches] = [Netns::new(), Netns::new()];
    requests.run(serve);
    searches.sysctl("net.ipv4.ip_local_port_range", PORTS);
    let address = searches.run(serve);
    let _taken: Vec<Socket> = searches.run(|| (0..TAKEN).map(|_| connect(address)).collect());
    println!(
        "| watched by | unwatched | left of it | in the worst tenth | left by CPU time | bar |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for case in CASES {
        let name = case.watcher.join(" ");
        if wanted
            .as_deref()
            .is_some_and(|wanted| !name.contains(wanted))
        {
            continue;
        }
        let netns = match case.load {
            Load::Requests => &requests,
            Load::Searches => &searches,
        };
        compare(case, rounds, (netns, address));
    }
}

/// Prints what is left of the load while it is watched.
fn compare(case: &Case, rounds: usize, (netns, address): (&Netns, SocketAddr)) {
    let (mut rates, mut left, mut left_by_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let watched = || {
        let watcher = start_unheard(case.watcher);
        thread::sleep(SETTLING);
        let pace = pace(netns, case.load, address);
        end(watcher);
        pace
    };
    let unwatched = || {
        // After a rest, a machine is slower for a while: both have had one.
        thread::sleep(SETTLING);
        pace(netns, case.load, address)
    };
    for round in 0..rounds {
        // Whatever changes with time is for one of them as often as for the other.
        let (without, with) = if round % 2 == 0 {
            let without = unwatched();
            (without, watched())
        } else {
            let with = watched();
            (unwatched(), with)
        };
        rates.push(without.per_s);
        left.push(100.0 * with.per_s / without.per_s);
        left_by_cpu.push(100.0 * with.per_cpu_s / without.per_cpu_s);
    }
    for results in [&mut rates, &mut left, &mut left_by_cpu] {
        results.sort_by(f64::total_cmp);
    }
    let what = match case.load {
        Load::Requests => "requests/s",
        Load::Searches => "connects/s",
    };
    println!(
        "| {} | {:.0} {what} | {:.1} % | {:.1} % | {:.1} % | {} % |",
        case.watcher.join(" "),
        rates[rates.len() / 2],
        left[left.len() / 2],
        left[left.len() / 10],
        left_by_cpu[left_by_cpu.len() / 2],
        case.bar
    );
}

/// Answers requests, and keeps connections without one, for good.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).expect("listen");
    let requests = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT + 1)).expect("listen");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let kept: Vec<TcpStream> = listener.incoming().flatten().take(TAKEN).collect();
        for connection in listener.incoming() {
            drop(connection);
        }
        drop(kept);
    });
    thread::spawn(move || {
        for connection in requests.incoming().flatten() {
            answer(connection);
        }
    });
    address
}

fn answer(mut connection: TcpStream) {
    let mut request = [0; 512];
    // A client that has gone gets no answer.
    if connection.read(&mut request).is_ok() {
        connection.write_all(b"HTTP/1.0 200 OK\r\n\r\nanswer").ok();
    }
}

/// How often something was done.
struct Pace {
    per_s: f64,
    /// Per second of CPU time of both ends, with what watches within the kernel meanwhile: what else the machine does
    /// is no matter.
    per_cpu_s: f64,
}

fn pace(netns: &Netns, load: Load, address: SocketAddr) -> Pace {
    let requests = SocketAddr::from((address.ip(), PORT + 1));
    netns.run(|| {
        let began = Instant::now();
        let cpu = cpu_time();
        let mut count = 0_u32;
        while began.elapsed() < SLICE {
            match load {
                Load::Requests => request(requests),
                Load::Searches => abort(connect(address)),
            }
            count += 1;
        }
        let count = f64::from(count);
        Pace {
            per_s: count / began.elapsed().as_secs_f64(),
            per_cpu_s: count / cpu_time().saturating_sub(cpu).as_secs_f64(),
        }
    })
}

fn request(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("ask");
    // The server closes, so that its side waits.
    stream.read_to_end(&mut Vec::new()).expect("an answer");
}

fn connect(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.connect(&address.into()).expect("connect");
    socket
}
