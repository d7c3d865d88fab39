//! Data that is lost on its way, so that TCP sends it again.

use std::{
    io::{ErrorKind, Read, Write},
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{netns::Cable, traffic::Family};
use socket2::Socket;

const PORT: u16 = 7291;
/// Connections that lose data at the same time: while one waits for its timer others go on.
const CONNECTIONS: usize = 8;

/// A cable that loses one packet of seven, and connections over it that stay open, so that nothing
/// but what is sent again runs the programs for retransmissions.
#[derive(Debug)]
pub(crate) struct Lossy {
    _cable: Cable,
    pairs: Vec<(Socket, Socket)>,
}

impl Lossy {
    /// A new one.
    pub(crate) fn new() -> Self {
        let cable = Cable::new();
        let lost = format!("tcp dport {PORT} meta length > 1000 numgen inc mod 7 == 3");
        // To the end of the namespace: the rule goes when its guard is dropped.
        std::mem::forget(cable.server.firewall("input", &lost));
        // A timer of 200 ms, the usual least, would be most of the time.
        cable
            .client
            .ip("route replace 10.77.0.0/24 dev np0 rto_min 2ms\n");
        let listener = cable.server.run(|| Family::V4.listen(PORT, 1));
        let pairs = (0..CONNECTIONS).map(|_| {
            let pair = Family::V4.pair(&cable.client, &listener);
            for end in [&pair.0, &pair.1] {
                end.set_nonblocking(true).expect("do not block");
            }
            pair
        });
        let pairs = pairs.collect();
        Self {
            _cable: cable,
            pairs,
        }
    }

    /// Sends over it for so long.
    pub(crate) fn run(&self, length: Duration) {
        let chunk = vec![0; 1 << 14];
        let mut bytes = vec![0; 1 << 16];
        let began = Instant::now();
        while began.elapsed() < length {
            for (mut near, mut far) in self.pairs.iter().map(|(near, far)| (near, far)) {
                has_room(near.write(&chunk));
                has_room(far.read(&mut bytes));
            }
            thread::yield_now();
        }
    }
}

/// Nothing to do at the moment is no failure.
fn has_room(done: std::io::Result<usize>) {
    if let Err(why) = done {
        assert_eq!(why.kind(), ErrorKind::WouldBlock, "{why}");
    }
}
