//! A path that loses some packets: throughput sags, data is sent again.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "path-loss",
    about: "a path that loses 3 % of the packets",
    cure: "a path that loses none",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        answer_bytes: 200_000,
        ..Serve::well(PORT)
    };
    let request = Request {
        requests: u32::MAX,
        answer_bytes: 200_000,
        idle_ms: 20,
        at_once: 8,
        patience_ms: 20_000,
        ..Request::new(TARGET, 8)
    };
    let stage = Stage::new(serve, request).sign(Sign::Answered(CLIENT_NAME, 20));
    if is_cured {
        return stage.queue(Host::Server, "netem delay 5ms");
    }
    stage
        .queue(Host::Server, "netem delay 5ms loss 3%")
        .sign(Sign::Counter(Host::Server, "Tcp.RetransSegs", 50))
}
