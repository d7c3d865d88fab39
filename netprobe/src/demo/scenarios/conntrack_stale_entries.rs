//! A firewall that remembers connections which ended without its seeing it: their resets were dropped
//! before it. The entries stay for days.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Closing, Parting, Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "conntrack-stale-entries",
    about: "the firewall remembers connections that ended long ago",
    cure: "a shorter nf_conntrack_tcp_timeout_established",
    stage: || stage(false),
    cured: || stage(true),
};

const FORGETS_NOTHING: &str = "table ip demo {
    chain before {
        type filter hook prerouting priority -300;
        tcp flags & rst == rst drop
    }
    chain after {
        type filter hook output priority -300;
        tcp flags & rst == rst drop
    }
    chain input {
        type filter hook input priority filter;
        ct state established accept
    }
}
";

fn stage(is_cured: bool) -> Stage {
    let request = Request {
        parting: Parting::Reset,
        ..Request::new(TARGET, 200)
    };
    let serve = Serve {
        closing: Closing::Reset,
        ..Serve::well(PORT)
    };
    let timeout = if is_cured { 3 } else { 432_000 };
    Stage::new(serve, request)
        .firewall(Host::Server, FORGETS_NOTHING)
        .sysctl(
            Host::Server,
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            timeout,
        )
        .sign(Sign::Answered(CLIENT_NAME, 1_000))
}
