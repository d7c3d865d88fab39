//! A web server and the application behind it on one host, as somebody met them: five failures in a
//! row, each uncovered by the cure of the one before.

use std::net::SocketAddrV4;

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::{Host, SERVER},
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "lab",
    about: "conntrack, workers, accept queues, local ports: each cure uncovers the next failure",
    cure: "a larger nf_conntrack_max; then more workers, longer queues, more ports",
    stage: || stage(0),
    cured: || stage(1),
    later: &[|| stage(2), || stage(3), || stage(4)],
};

const WEB: &str = "demo-web";
const APPLICATION: &str = "demo-app";
const APPLICATION_PORT: u16 = 9000;
const EADDRNOTAVAIL: i32 = 99;
const REMEMBERS: &str = "table inet demo {
    chain input {
        type filter hook input priority filter;
        ct state established accept
    }
}
";

/// How it is after so many cures.
fn stage(cures: usize) -> Stage {
    let has_workers = cures >= 2;
    let has_queues = cures >= 3;
    let web = Serve {
        // More than the application's queue holds come at once.
        backlog: if has_queues { 1024 } else { 20 },
        workers: if has_workers { 10_000 } else { 30 },
        pause_ms: if has_workers && !has_queues { 1000 } else { 0 },
        upstream: Some(SocketAddrV4::new(SERVER, APPLICATION_PORT)),
        ..Serve::well(PORT)
    };
    let application = Serve {
        backlog: if has_queues { 1024 } else { 10 },
        workers: if has_workers { 10_000 } else { 2 },
        service_ms: if has_workers { 0 } else { 1000 },
        pause_ms: if has_workers && !has_queues { 300 } else { 0 },
        ..Serve::well(APPLICATION_PORT)
    };
    let request = Request {
        burst: 40,
        ..Request::new(TARGET, 40)
    };
    let has_ports = cures >= 4;
    let stage = Stage::default()
        .process(Host::Server, APPLICATION, Workload::Serve(application))
        .process(Host::Server, WEB, Workload::Serve(web))
        .process(Host::Client, CLIENT_NAME, Workload::Request(request))
        .firewall(Host::Server, REMEMBERS)
        .machine(
            "net.netfilter.nf_conntrack_max",
            if cures >= 1 { 262_144 } else { 200 },
        )
        .sysctl(
            Host::Server,
            "net.ipv4.ip_local_port_range",
            if has_ports {
                "1024 65535"
            } else {
                "20000 21199"
            },
        )
        .sysctl(Host::Server, "net.ipv4.tcp_tw_reuse", u32::from(has_ports))
        // A small machine has few by default.
        .sysctl(Host::Client, "net.ipv4.tcp_max_tw_buckets", 262_144)
        .sysctl(Host::Server, "net.ipv4.tcp_max_tw_buckets", 262_144);
    match cures {
        // The table is full by then.
        0 => stage.sign(Sign::Started(CLIENT_NAME, 400)),
        1 | 2 => stage.sign(Sign::Counter(Host::Server, "TcpExt.ListenOverflows", 50)),
        3 => stage.sign(Sign::Failures(WEB, EADDRNOTAVAIL, 40)),
        _ => stage.sign(Sign::Answered(CLIENT_NAME, 200)),
    }
}
