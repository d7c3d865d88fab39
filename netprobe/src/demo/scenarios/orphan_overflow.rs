//! Clients that give up while their data is still under way, faster than the kernel may look after what
//! they leave behind: it resets.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Closing, Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "orphan-overflow",
    about: "more closed connections with data under way than tcp_max_orphans: they are reset",
    cure: "a larger tcp_max_orphans",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        closing: Closing::Never,
        ..Serve::well(PORT)
    };
    let request = Request {
        request_bytes: 1_000_000,
        patience_ms: 300,
        ..Request::new(TARGET, 20)
    };
    let orphans = if is_cured { 65_536 } else { 8 };
    let stage = Stage::new(serve, request)
        .machine("net.ipv4.tcp_max_orphans", orphans)
        .sysctl(Host::Client, "net.ipv4.tcp_orphan_retries", 0)
        .sign(Sign::GaveUp(CLIENT_NAME, 40));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Counter(Host::Client, "TcpExt.TCPAbortOnMemory", 10))
}
