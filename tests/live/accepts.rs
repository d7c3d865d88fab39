//! Accepted connections: as many as `accept` returned, by the process that called it.

use std::time::{Duration, Instant};

use netprobe_tests::{
    netns::Cable,
    probe::{Probe, number, text},
    process::Actor,
    skip::has_hooks,
    traffic::{Family, accept_queue},
    wait_until,
};

const PORT: u16 = 7631;
const TIMES: u64 = 5;

#[test]
fn accepts_equal_those_of_the_process_that_listens() {
    if !has_hooks("accepts", &[]) {
        return;
    }
    for family in Family::OF_SOCKETS {
        let cable = Cable::new();
        let mut server = Actor::start("np-accepts", |stage| {
            cable.server.enter();
            let listener = family.listen(PORT, 16);
            stage.tell(b'l');
            stage.await_byte();
            wait_until("all wait", || u64::from(accept_queue(&listener)) == TIMES);
            let waited = Instant::now();
            wait_until("they waited", || {
                waited.elapsed() > Duration::from_millis(20)
            });
            for _ in 0..TIMES {
                drop(listener.accept().expect("accept"));
            }
            stage.tell(b'a');
            stage.await_byte();
        });
        assert_eq!(server.hear(), b'l');
        let mut probe = Probe::of(&cable.server, "accepts");
        let clients: Vec<_> = (0..TIMES)
            .map(|_| cable.client.run(|| family.connect(PORT)).expect("connect"))
            .collect();
        server.cue();
        assert_eq!(server.hear(), b'a');
        probe.wait_for("all accepts", |events| events.len() as u64 == TIMES);
        let run = probe.stop();
        drop(clients);
        for (index, event) in (1..).zip(run.all()) {
            assert_eq!(number(event, "pid"), server.pid(), "{family:?}: {event:?}");
            assert_eq!(text(event, "comm"), "np-accepts");
            assert_eq!(number(event, "sport"), u64::from(PORT));
            assert_eq!(text(event, "family"), family.name());
            assert_eq!(number(event, "accept_limit"), 16);
            if text(event, "seen") == "accepted" {
                assert_eq!(number(event, "accept_queue"), TIMES - index);
                assert!(number(event, "waited_ns") > 20_000_000, "{event:?}");
            }
        }
        assert_eq!(run.all().len() as u64, TIMES, "{family:?}");
    }
}
