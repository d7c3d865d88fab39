//! A server that is fast enough, but looks at its accept queue only now and then; the queue is too
//! short for what arrives between two looks.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "accept-queue-overflow",
    about: "a listen() backlog too short for what arrives between two accepts",
    cure: "listen() with a longer backlog",
    stage: || stage(false),
    cured: || stage(true),
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        backlog: if is_cured { 512 } else { 8 },
        pause_ms: 250,
        ..Serve::well(PORT)
    };
    Stage::new(serve, Request::new(TARGET, 100))
        .sign(Sign::Answered(CLIENT_NAME, 20))
        .sign(Sign::Counter(
            Host::Server,
            "TcpExt.ListenOverflows",
            if is_cured { 0 } else { 20 },
        ))
}
