//! A client that opens a connection for every request to one destination, closes first, and has 51
//! ports to do it with. Each stays in TIME_WAIT for a minute.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "ephemeral-ports-exhausted",
    about: "every local port towards one destination is taken: connect() fails with errno 99",
    cure: "a wider port range",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const EADDRNOTAVAIL: i32 = 99;

fn stage(is_cured: bool) -> Stage {
    let range = if is_cured {
        "20000 60999"
    } else {
        "20000 20050"
    };
    let stage = Stage::new(Serve::well(PORT), Request::new(TARGET, 40))
        .sysctl(Host::Client, "net.ipv4.ip_local_port_range", range)
        .sysctl(Host::Client, "net.ipv4.tcp_tw_reuse", 0);
    if is_cured {
        return stage.sign(Sign::Answered(CLIENT_NAME, 20));
    }
    stage.sign(Sign::Failures(CLIENT_NAME, EADDRNOTAVAIL, 20))
}
