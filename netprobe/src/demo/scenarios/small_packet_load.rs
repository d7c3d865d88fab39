//! Very many very small packets: each costs as much as a large one, and carries next to nothing.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{Sign, Stage},
    workload::{Datagrams, Sink, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "small-packet-load",
    about: "150,000 packets per second with a few bytes in each: bound by packets, not by bytes",
    cure: "the same bytes in larger packets",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const SENDER: &str = "demo-telemetry";

fn stage(is_cured: bool) -> Stage {
    // The same 2.4 MB/s.
    let (rate, bytes) = if is_cured {
        (2_000, 1_200)
    } else {
        (150_000, 16)
    };
    let send = Datagrams {
        to: TARGET,
        rate,
        bytes,
    };
    Stage::default()
        .process(
            Host::Server,
            "demo-sink",
            Workload::Take(Sink { port: PORT }),
        )
        .process(Host::Client, SENDER, Workload::Send(send))
        .sign(Sign::Started(SENDER, u64::from(rate / 2)))
}
