//! Data that is lost on its way, so that TCP sends it again.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{netns::Cable, traffic::Family};

const PORT: u16 = 7291;

/// A cable that loses one packet of seven.
#[derive(Debug)]
pub(crate) struct Lossy(Cable);

impl Lossy {
    /// A new one.
    pub(crate) fn new() -> Self {
        let cable = Cable::new();
        let lost = format!("tcp dport {PORT} meta length > 1000 numgen inc mod 7 == 3");
        cable.server.firewall("input", &lost);
        Self(cable)
    }

    /// Sends over it for so long.
    pub(crate) fn run(&self, length: Duration) {
        let listener = self.0.server.run(|| Family::V4.listen(PORT, 1));
        let (mut near, mut far) = Family::V4.pair(&self.0.client, &listener);
        thread::scope(|scope| {
            scope.spawn(move || {
                let began = Instant::now();
                let chunk = vec![0; 1 << 14];
                while began.elapsed() < length {
                    near.write_all(&chunk).expect("send");
                }
                near.shutdown(Shutdown::Both).expect("close");
            });
            let mut bytes = vec![0; 1 << 16];
            while far.read(&mut bytes).is_ok_and(|length| length > 0) {}
        });
    }
}
