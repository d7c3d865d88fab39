//! A link slower than what is sent, with a short queue in front of it.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "egress-queue-drops",
    about: "a link slower than what is sent, and a short queue in front of it",
    cure: "a faster link",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        answer_bytes: 100_000,
        ..Serve::well(PORT)
    };
    let request = Request {
        requests: u32::MAX,
        answer_bytes: 100_000,
        at_once: 8,
        idle_ms: 100,
        patience_ms: 20_000,
        ..Request::new(TARGET, 8)
    };
    let stage = Stage::new(serve, request).sign(Sign::Answered(CLIENT_NAME, 5));
    if is_cured {
        return stage;
    }
    stage
        .queue(Host::Server, "tbf rate 10mbit burst 4kb limit 12kb")
        // Far more than the link takes at once; on 5.10 what the queue drops is sent again without being counted so.
        .sign(Sign::Counter(Host::Server, "Tcp.OutSegs", 2_000))
}
