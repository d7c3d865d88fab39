//! A destination that is not there, beside one that is: SYNs get no answer and are sent again after 1,
//! 3 and 7 seconds.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "syn-retransmits",
    about: "a destination that answers no SYN: they are sent again after 1 s, and so on",
    cure: "the destination is there",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

/// Routed to the server's host, which is not it and forwards nothing.
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 0, 9), PORT);

fn stage(is_cured: bool) -> Stage {
    let request = Request {
        patience_ms: 10_000,
        ..Request::new(if is_cured { TARGET } else { NOWHERE }, 5)
    };
    let stage = Stage::new(Serve::well(PORT), Request::new(TARGET, 20))
        .process(Host::Client, "demo-lost", Workload::Request(request))
        .sign(Sign::Answered(CLIENT_NAME, 20));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Counter(Host::Client, "TcpExt.TCPSynRetrans", 10))
}
