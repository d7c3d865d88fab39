//! A server that closes connections without having read the request: the kernel sends a reset.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Closing, Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "resets",
    about: "a server that closes without reading the request: its kernel sends resets",
    cure: "a server that reads before it closes",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        closing: if is_cured {
            Closing::AfterClient
        } else {
            Closing::Unread
        },
        ..Serve::well(PORT)
    };
    let stage = Stage::new(serve, Request::new(TARGET, 40));
    if is_cured {
        return stage.sign(Sign::Answered(CLIENT_NAME, 20));
    }
    stage.sign(Sign::Counter(Host::Server, "TcpExt.TCPAbortOnClose", 40))
}
