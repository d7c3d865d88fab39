//! Every worker of a server is held by a client that connected and says nothing.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "long-held-connections",
    about: "clients that connect and say nothing hold every worker",
    cure: "clients that speak and leave",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        workers: 100,
        ..Serve::well(PORT)
    };
    let held = Request {
        requests: u32::from(is_cured),
        at_once: 100,
        ..Request::new(TARGET, 200)
    };
    let mut stage = Stage::new(serve, Request::new(TARGET, 2));
    stage.processes.insert(
        1,
        super::process(Host::Client, "demo-holder", Workload::Request(held)),
    );
    if is_cured {
        return stage.sign(Sign::Answered(CLIENT_NAME, 10));
    }
    stage.sign(Sign::GaveUp(CLIENT_NAME, 15))
}
