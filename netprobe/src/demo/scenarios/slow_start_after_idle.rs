//! A connection that sends a burst, pauses, and sends a burst again, on a path with a round trip of
//! 40 ms: after each pause it begins with a small window.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "slow-start-after-idle",
    about: "bursts after pauses: each begins again with a small congestion window",
    cure: "tcp_slow_start_after_idle=0",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        answer_bytes: 400_000,
        ..Serve::well(PORT)
    };
    let request = Request {
        requests: u32::MAX,
        answer_bytes: 400_000,
        idle_ms: 1_500,
        at_once: 12,
        patience_ms: 20_000,
        ..Request::new(TARGET, 12)
    };
    Stage::new(serve, request)
        .queue(Host::Client, "netem delay 40ms")
        .sysctl(
            Host::Server,
            "net.ipv4.tcp_slow_start_after_idle",
            u8::from(!is_cured),
        )
        .sign(Sign::Answered(CLIENT_NAME, 30))
}
