//! State changes: those that TCP prescribes for each end of a connection, in their order.

use netprobe_tests::{
    event::{Event, number, text},
    netns::Cable,
    probe::{Probe, Run},
    skip::has_hooks,
    traffic::{Family, port_of},
};
use socket2::Socket;

const PORT: u16 = 7621;

/// `OLD>NEW` of the events at a local port, in order.
fn changes(events: &[Event], is_local: impl Fn(&Event) -> bool) -> Vec<String> {
    let events = events.iter().filter(|event| is_local(event));
    events
        .map(|event| format!("{}>{}", text(event, "old_state"), text(event, "state")))
        .collect()
}

#[test]
fn each_end_goes_through_the_states_of_rfc_9293() {
    if !has_hooks("states", &[]) {
        return;
    }
    let cable = Cable::new();
    let probes = [&cable.client, &cable.server].map(|netns| Probe::of(netns, "states"));
    let clients = Family::OF_SOCKETS.map(|family| {
        let listener = cable.server.run(|| family.listen(family.port(PORT), 8));
        let (near, far): (Socket, Socket) = family.pair(&cable.client, &listener);
        let port = port_of(&near);
        drop(near);
        cable.client.wait_for_silence();
        drop(far);
        cable.server.wait_for_silence();
        port
    });
    let [client, server] = probes.map(Probe::stop);
    for (family, port) in Family::OF_SOCKETS.into_iter().zip(clients) {
        let [client, server] = [&client, &server].map(|run| run.at_port(family.port(PORT)));
        assert_changes(family, &client, &server, port);
    }
}

/// What both ends saw of one connection, from this port of the client.
#[track_caller]
fn assert_changes(family: Family, client: &Run, server: &Run, port: u16) {
    // The local port is chosen only after the first change.
    assert_eq!(
        changes(client.all(), |_| true),
        [
            "UNCONN>SYN-SENT",
            "SYN-SENT>ESTAB",
            "ESTAB>FIN-WAIT-1",
            "FIN-WAIT-1>FIN-WAIT-2",
            "FIN-WAIT-2>UNCONN"
        ],
        "{family:?}"
    );
    assert_eq!(
        changes(server.all(), |event| number(event, "dport")
            == u64::from(port)
            && text(event, "old_state") != "LISTEN"),
        [
            "SYN-RECV>ESTAB",
            "ESTAB>CLOSE-WAIT",
            "CLOSE-WAIT>LAST-ACK",
            "LAST-ACK>UNCONN"
        ],
        "{family:?}"
    );
    // Older kernels copy the peer to the new socket only after its first change.
    assert_eq!(
        changes(server.all(), |event| number(event, "dport") == 0
            || text(event, "old_state") == "LISTEN"),
        ["UNCONN>LISTEN", "LISTEN>SYN-RECV", "LISTEN>UNCONN"],
        "{family:?}"
    );
    let own = u64::from(std::process::id());
    for event in client.all() {
        assert_eq!(number(event, "pid"), own, "{event:?}");
        assert_eq!(text(event, "family"), family.name());
    }
    let sockets = client.all().iter().map(|event| text(event, "socket"));
    assert!(
        sockets
            .clone()
            .all(|socket| Some(socket) == sockets.clone().next())
    );
    let stayed = client.all().iter().skip(1);
    assert!(stayed.clone().all(|event| number(event, "in_state_ns") > 0));
}
