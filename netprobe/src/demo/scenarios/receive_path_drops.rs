//! Packets that arrive faster than a CPU takes them from its queue, which may hold next to none.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "receive-path-drops",
    about: "packets are dropped before TCP: a CPU's queue of received packets is full",
    cure: "a larger netdev_max_backlog",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        answer_bytes: 60_000,
        ..Serve::well(PORT)
    };
    let request = Request {
        requests: u32::MAX,
        answer_bytes: 60_000,
        idle_ms: 100,
        at_once: 6,
        patience_ms: 20_000,
        ..Request::new(TARGET, 6)
    };
    let packets = if is_cured { 1_000 } else { 3 };
    // What is sent together leaves the delay together, and arrives at once.
    let stage = Stage::new(serve, request)
        .queue(Host::Server, "netem delay 10ms")
        .machine("net.core.netdev_max_backlog", packets)
        .sign(Sign::Answered(CLIENT_NAME, 5));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Counter(Host::Server, "Tcp.RetransSegs", 20))
}
