//! A server that may open 64 files, with more clients than that: accept() fails with EMFILE while the
//! queue fills.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    stage::{CLIENT_NAME, SERVER_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "fd-exhaustion",
    about: "a server out of file descriptors: accept() fails with errno 24 while clients wait",
    cure: "a higher limit of open files",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const EMFILE: i32 = 24;

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        descriptors: Some(if is_cured { 4_096 } else { 64 }),
        ..Serve::well(PORT)
    };
    let request = Request {
        requests: u32::MAX,
        idle_ms: 500,
        at_once: 150,
        ..Request::new(TARGET, 50)
    };
    let stage = Stage::new(serve, request).sign(Sign::Answered(CLIENT_NAME, 50));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Failures(SERVER_NAME, EMFILE, 20))
}
