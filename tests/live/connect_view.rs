//! The sums at the end of `connects`: failures by errno, and the step of a lost SYN.

use netprobe_tests::{
    netns::Cable,
    probe::Probe,
    skip::has_hooks,
    traffic::{Family, is_connected},
    wait_until,
};
use serde_json::{Value, json};

const PORT: u16 = 7651;
const CLOSED: u16 = 7652;

#[test]
fn a_lost_syn_and_a_refusal_are_told_apart() {
    if !has_hooks("connects", &[]) {
        return;
    }
    let cable = Cable::new();
    let _listener = cable.server.run(|| Family::V4.listen(PORT, 8));
    let probe = Probe::of(&cable.client, "connects");
    cable
        .client
        .run(|| Family::V4.connect(CLOSED))
        .expect_err("nobody listens");
    // The first SYN has the hop limit that the firewall drops, the second has not: to open the
    // firewall between them would be a race.
    let _firewall = cable
        .server
        .firewall("input", &format!("tcp dport {PORT} ip ttl 7"));
    let late = cable.client.run(|| {
        let late = Family::V4.socket();
        late.set_ttl_v4(7).expect("set the hop limit");
        Family::V4.begin_with(&late, PORT);
        late
    });
    late.set_ttl_v4(64).expect("set the hop limit");
    wait_until("it is sent again", || is_connected(&late));
    let run = probe.stop();
    let view: Value = run.summary.connects.expect("connects add up to something");
    assert_eq!(view["established"], 1, "{view}");
    assert_eq!(
        view["failed"],
        json!([{ "errno": "ECONNREFUSED", "connects": 1 }])
    );
    assert_eq!(
        view["lost_syn_steps"],
        json!([{ "after_s": 1, "connects": 1 }])
    );
    let destinations = view["destinations"].as_array().expect("destinations");
    let found: Vec<_> = destinations
        .iter()
        .map(|one| {
            (
                one["dport"].as_u64(),
                one["failed"].as_u64(),
                one["syns_again"].as_u64(),
            )
        })
        .collect();
    let port = |port: u16| Some(u64::from(port));
    assert_eq!(
        found,
        [
            (port(CLOSED), Some(1), Some(0)),
            (port(PORT), Some(0), Some(1))
        ]
    );
}
