//! Connections that are quiet for four seconds, through a NAT that forgets them after two and answers
//! what it does not know with a reset.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve, Workload},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "idle-reset",
    about: "a NAT that forgets connections which are quiet for 2 s, and resets them when they speak",
    cure: "keepalive probes more often than the NAT forgets",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const ECONNRESET: i32 = 104;
const FORGETFUL: &str = "table ip demo {
    chain nat {
        type nat hook postrouting priority srcnat;
        oifname eth1 masquerade
    }
    chain forward {
        type filter hook forward priority filter;
        ct state invalid reject with tcp reset
    }
}
";

fn stage(is_cured: bool) -> Stage {
    let request = Request {
        requests: u32::MAX,
        idle_ms: 4_000,
        at_once: 200,
        keepalive_s: is_cured.then_some(1),
        ..Request::new(TARGET, 10)
    };
    let stage = Stage::new(Serve::well(PORT), request)
        .routed()
        .process(Host::Router, "demo-router", Workload::Rest)
        .firewall(Host::Router, FORGETFUL)
        .sysctl(Host::Router, "net.netfilter.nf_conntrack_tcp_loose", 0)
        .sysctl(
            Host::Router,
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            2,
        );
    if is_cured {
        return stage.sign(Sign::Answered(CLIENT_NAME, 30));
    }
    stage.sign(Sign::Failures(CLIENT_NAME, ECONNRESET, 10))
}
