//! More than half of the ports towards a destination are in TIME_WAIT. The kernel looks at all ports
//! of one parity before those of the other, so each connect() looks at thousands that are taken. No
//! error yet; the CPU pays.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Closing, Parting, Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "port-search-cost",
    about: "most ports are taken: connect() still works, but looks at thousands of them",
    cure: "a wider port range",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 4_000;
/// Connections at the start, each of which leaves a port in TIME_WAIT for a minute.
const TAKEN: u32 = 2_300;

fn stage(is_cured: bool) -> Stage {
    let last = if is_cured {
        60_999
    } else {
        FIRST_PORT + PORTS - 1
    };
    // The server closes those that follow, so that they take no ports for long.
    let request = Request {
        before: if is_cured { 0 } else { TAKEN },
        parting: Parting::AfterServer,
        ..Request::new(TARGET, 60)
    };
    let serve = Serve {
        closing: Closing::AfterAnswer,
        ..Serve::well(PORT)
    };
    Stage::new(serve, request)
        .sysctl(
            Host::Client,
            "net.ipv4.ip_local_port_range",
            format!("{FIRST_PORT} {last}"),
        )
        .sysctl(Host::Client, "net.ipv4.tcp_tw_reuse", 0)
        .sign(Sign::Answered(CLIENT_NAME, 100))
}
