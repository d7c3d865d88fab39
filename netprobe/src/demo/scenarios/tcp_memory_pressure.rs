//! A server that does not read, and clients that send all the same: the data waits in the kernel until
//! TCP may not take any more memory.

use super::{PORT, TARGET};
use crate::demo::{
    Scenario,
    network::Host,
    stage::{CLIENT_NAME, Sign, Stage},
    workload::{Closing, Request, Serve},
};

pub(super) const SCENARIO: Scenario = Scenario {
    id: "tcp-memory-pressure",
    about: "data that nobody reads fills TCP's memory",
    cure: "more memory for TCP, or a server that reads",
    stage: || stage(false),
    cured: || stage(true),
    later: &[],
};

fn stage(is_cured: bool) -> Stage {
    let serve = Serve {
        closing: Closing::Never,
        ..Serve::well(PORT)
    };
    let request = Request {
        request_bytes: 2_000_000,
        at_once: 30,
        patience_ms: 60_000,
        ..Request::new(TARGET, 20)
    };
    let pages = if is_cured {
        "100000 150000 200000"
    } else {
        "64 128 256"
    };
    let stage = Stage::new(serve, request).machine("net.ipv4.tcp_mem", pages);
    if is_cured {
        return stage.sign(Sign::Started(CLIENT_NAME, 20));
    }
    stage.sign(Sign::Counter(Host::Server, "TcpExt.PruneCalled", 20))
}
