//! Every request opens a connection of its own, hundreds a second.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Closing, Parting, Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "short-lived-connections",
    about: "a new connection for every request, hundreds a second",
    cure: "keep-alive",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let request = if is_cured {
        Request {
            requests: u32::MAX,
            idle_ms: 50,
            at_once: 10,
            ..Request::new(TARGET, 100)
        }
    } else {
        Request {
            parting: Parting::AfterServer,
            ..Request::new(TARGET, 200)
        }
    };
    let serve = Serve {
        closing: if is_cured {
            Closing::AfterClient
        } else {
            Closing::AfterAnswer
        },
        ..Serve::well(PORT)
    };
    Stage::new(serve, request)
        // Within limits also on a small machine, which has few buckets by default.
        .sysctl(Host::Server, "net.ipv4.tcp_max_tw_buckets", 262_144)
        .sign(Sign::Answered(CLIENT_NAME, 100))
}
