//! A firewall on the server's host that drops what comes for one port: SYNs vanish without an answer.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "firewall-drops",
    about: "a local firewall drops the SYNs for one port",
    cure: "a rule that accepts them",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

const DROPS: &str = "table inet demo {
    chain input {
        type filter hook input priority filter;
        tcp dport 8080 drop
    }
}
";

fn stage(is_cured: bool) -> Stage {
    let stage = Stage::new(Serve::well(PORT), Request::new(TARGET, 20));
    if is_cured {
        return stage.sign(Sign::Answered(CLIENT_NAME, 20));
    }
    stage.firewall(Host::Server, DROPS).sign(Sign::Counter(
        Host::Client,
        "TcpExt.TCPSynRetrans",
        20,
    ))
}
