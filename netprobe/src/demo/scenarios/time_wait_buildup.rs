//! A client that closes first, many times: its host is full of connections in TIME_WAIT, which take
//! most of its ports.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "time-wait-buildup",
    about: "the client closes first, many times: most of its ports are in TIME_WAIT",
    cure: "connections that are kept, and reuse of ports in TIME_WAIT",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

/// The range of ports is as large as a slow machine can fill.
const RANGE: &str = "20000 23999";
const BEFORE: u32 = 2_300;

fn stage(is_cured: bool) -> Stage {
    let request = if is_cured {
        Request {
            requests: u32::MAX,
            idle_ms: 50,
            at_once: 10,
            ..Request::new(TARGET, 20)
        }
    } else {
        Request {
            before: BEFORE,
            ..Request::new(TARGET, 20)
        }
    };
    let stage = Stage::new(Serve::well(PORT), request)
        .sysctl(Host::Client, "net.ipv4.ip_local_port_range", RANGE)
        .sysctl(Host::Client, "net.ipv4.tcp_tw_reuse", u8::from(is_cured))
        .sign(Sign::Answered(CLIENT_NAME, 20));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::TimeWait(Host::Client, 2_100))
}
