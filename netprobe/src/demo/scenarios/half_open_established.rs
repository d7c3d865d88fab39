//! Bursts of clients on a path with a round trip of 60 ms. Their SYNs find room in the queues, but when
//! their last ACKs arrive together the accept queue is full. The clients believe that they are connected.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "half-open-established",
    about: "the accept queue is full when the last ACK arrives: clients believe they are connected",
    cure: "listen() with a longer backlog",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        backlog: if is_cured { 512 } else { 15 },
        pause_ms: 700,
        ..Serve::well(PORT)
    };
    let request = Request {
        burst: 12,
        ..Request::new(TARGET, 60)
    };
    Stage::new(serve, request)
        .queue(Host::Client, "netem delay 60ms")
        .sign(Sign::Answered(CLIENT_NAME, 20))
        .sign(Sign::Counter(
            Host::Server,
            "TcpExt.ListenOverflows",
            if is_cured { 0 } else { 20 },
        ))
}
