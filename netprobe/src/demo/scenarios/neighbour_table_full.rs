//! A host that looks for more neighbours than it may remember, all on its own network: packets to those
//! it does not know yet go nowhere.

use super::{PORT, TARGET};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::demo::{
    Scenario,
    network::Host,
    stage::{Sign, Stage},
    workload::{Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "neighbour-table-full",
    about: "more neighbours than the host may remember: packets to new ones go nowhere",
    cure: "larger gc_thresh1, gc_thresh2 and gc_thresh3",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

/// On the client's own network, and nobody's.
const STRANGERS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 128, 0), PORT);

fn stage(is_cured: bool) -> Stage {
    let search = Request {
        spread: 30_000,
        ..Request::new(STRANGERS, 100)
    };
    let limits = if is_cured {
        [4_096, 8_192, 16_384]
    } else {
        [16, 32, 64]
    };
    let stage = Stage::new(Serve::well(PORT), Request::new(TARGET, 10))
        .process(Host::Client, "demo-search", Workload::Request(search))
        .machine("net.ipv4.neigh.default.gc_thresh1", limits[0])
        .machine("net.ipv4.neigh.default.gc_thresh2", limits[1])
        .machine("net.ipv4.neigh.default.gc_thresh3", limits[2]);
    stage.sign(Sign::Started("demo-search", 400))
}
