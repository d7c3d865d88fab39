//! A server that is fast enough, but looks at its accept queue only now and then; the queue is too
//! short for the bursts that arrive between two looks.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "accept-queue-overflow",
    about: "a listen() backlog too short for bursts of clients",
    cure: "listen() with a longer backlog",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        backlog: if is_cured { 512 } else { 8 },
        pause_ms: 100,
        ..Serve::well(PORT)
    };
    let request = Request {
        burst: 30,
        ..Request::new(TARGET, 50)
    };
    Stage::new(serve, request)
        .sign(Sign::Answered(CLIENT_NAME, 20))
        .sign(Sign::Counter(
            Host::Server,
            "TcpExt.ListenOverflows",
            if is_cured { 0 } else { 20 },
        ))
}
