//! A server whose few workers are all busy. Its queue is full all the time; were it longer, everybody
//! would only wait longer.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "application-not-accepting",
    about: "all workers busy: the accept queue stays full however long it is",
    cure: "more workers",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        backlog: 32,
        workers: if is_cured { 200 } else { 4 },
        service_ms: 400,
        ..Serve::well(PORT)
    };
    let stage = Stage::new(serve, Request::new(TARGET, 100)).sign(Sign::Answered(CLIENT_NAME, 10));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Counter(Host::Server, "TcpExt.ListenOverflows", 50))
}
