//! A firewall that does not see how connections end, as with routes that differ by direction: their
//! entries stay for days, long after the sockets are gone.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "conntrack-stale-entries",
    about: "the firewall remembers connections that ended long ago",
    cure: "a shorter nf_conntrack_tcp_timeout_established, and an end to the entries made before",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const SEES_NO_END: &str = "table inet demo {
    chain before {
        type filter hook prerouting priority raw;
        tcp flags & (fin | rst) != 0 notrack
    }
    chain after {
        type filter hook output priority raw;
        tcp flags & (fin | rst) != 0 notrack
    }
    chain input {
        type filter hook input priority filter;
        ct state established accept
    }
}
";
/// What the table holds.
const ENTRIES: u32 = 2_000;
/// More than half of it is stale.
const STALE: u32 = 1_200;

fn stage(is_cured: bool) -> Stage {
    let timeout = if is_cured { 600 } else { 432_000 };
    let request = Request {
        before: if is_cured { 0 } else { STALE },
        ..Request::new(TARGET, 10)
    };
    let stage = Stage::new(Serve::well(PORT), request)
        .firewall(Host::Server, SEES_NO_END)
        .machine("net.netfilter.nf_conntrack_max", ENTRIES)
        .sysctl(
            Host::Server,
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            timeout,
        )
        // The last ACK of each, which is tracked, begins an entry anew.
        .sysctl(Host::Server, "net.netfilter.nf_conntrack_tcp_loose", 0)
        .sign(Sign::Answered(CLIENT_NAME, 10));
    // An entry keeps the timeout that it was made with.
    if is_cured {
        stage.forgets(Host::Server)
    } else {
        stage
    }
}
