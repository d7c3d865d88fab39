//! A host that closes first more often than it may remember: connections end without TIME_WAIT.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "time-wait-overflow",
    about: "more closed connections than tcp_max_tw_buckets: they end without TIME_WAIT",
    cure: "a larger tcp_max_tw_buckets",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let buckets = if is_cured { 65_536 } else { 64 };
    let stage = Stage::new(Serve::well(PORT), Request::new(TARGET, 100))
        .sysctl(Host::Client, "net.ipv4.tcp_max_tw_buckets", buckets)
        .sign(Sign::Answered(CLIENT_NAME, 50));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Counter(
        Host::Client,
        "TcpExt.TCPTimeWaitOverflow",
        50,
    ))
}
