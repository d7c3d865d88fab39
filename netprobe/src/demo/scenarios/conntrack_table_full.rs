//! Connections that stay, more than the firewall may remember: new ones are dropped without a word,
//! those that are established go on.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "conntrack-table-full",
    about: "the firewall remembers no more connections: new ones vanish, old ones go on",
    cure: "a larger nf_conntrack_max",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const REMEMBERS: &str = "table inet demo {
    chain input {
        type filter hook input priority filter;
        ct state established accept
    }
}
";

fn stage(is_cured: bool) -> Stage {
    let request = Request {
        requests: u32::MAX,
        idle_ms: 500,
        at_once: 400,
        ..Request::new(TARGET, 60)
    };
    let entries = if is_cured { 65_536 } else { 100 };
    let stage = Stage::new(Serve::well(PORT), request)
        .firewall(Host::Server, REMEMBERS)
        .machine("net.netfilter.nf_conntrack_max", entries)
        .sign(Sign::Answered(CLIENT_NAME, 50));
    if is_cured {
        return stage;
    }
    stage.sign(Sign::Counter(Host::Client, "TcpExt.TCPSynRetrans", 30))
}
