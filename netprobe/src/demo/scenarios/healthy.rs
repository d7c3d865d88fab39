//! Nothing is wrong: keep-alive clients and clients without, within all limits.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "healthy",
    about: "nothing is wrong: a busy server within its limits",
    cure: "nothing to cure",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(_is_cured: bool) -> Stage {
    let request = Request {
        requests: u32::MAX,
        idle_ms: 20,
        at_once: 20,
        ..Request::new(TARGET, 100)
    };
    Stage::new(Serve::well(PORT), request)
        .process(
            Host::Client,
            "demo-visitor",
            Workload::Request(Request::new(TARGET, 10)),
        )
        .sign(Sign::Answered(CLIENT_NAME, 500))
}
