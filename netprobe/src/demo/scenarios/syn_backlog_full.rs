//! A flood of SYNs from many addresses that never answer: the SYN backlog fills, and without cookies
//! the SYNs of real clients are dropped.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Flood, Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "syn-backlog-full",
    about: "a SYN flood fills the SYN backlog; without cookies, real clients are dropped",
    cure: "SYN cookies",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        backlog: 64,
        ..Serve::well(PORT)
    };
    let flood = Flood {
        to: TARGET,
        rate: 200,
        sources: 60_000,
    };
    let stage = Stage::new(serve, Request::new(TARGET, 20))
        .process(Host::Client, "demo-flood", Workload::Flood(flood))
        .sysctl(Host::Server, "net.ipv4.tcp_syncookies", u8::from(is_cured));
    if is_cured {
        return stage.sign(Sign::Answered(CLIENT_NAME, 20));
    }
    stage.sign(Sign::Counter(Host::Server, "TcpExt.TCPReqQFullDrop", 50))
}
