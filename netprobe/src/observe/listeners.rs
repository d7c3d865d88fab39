//! Which socket listens at a port, asked of the kernel. A connection that nobody has accepted yet
//! has no owner but the process that holds this socket.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::sockets;

/// How long an answer holds, also that there is nobody.
const HOLDS: Duration = Duration::from_secs(2);

/// Listeners by namespace and port.
#[derive(Debug, Default)]
pub struct Listeners {
    sockets: HashMap<(u32, u16), u64>,
    asked: Option<Instant>,
}

impl Listeners {
    /// Inode number of the socket that listens there; the first of several.
    pub fn of(&mut self, netns: u32, port: u16) -> Option<u64> {
        let key = (netns, port);
        if let Some(ino) = self.sockets.get(&key) {
            return Some(*ino);
        }
        if self.asked.is_some_and(|asked| asked.elapsed() < HOLDS) {
            return None;
        }
        self.asked = Some(Instant::now());
        self.sockets.clear();
        match sockets::listeners() {
            Ok(listeners) => {
                for listener in listeners {
                    self.sockets
                        .entry((listener.netns, listener.port))
                        .or_insert(listener.ino);
                }
            }
            Err(error) => log::debug!("who listens is not known: {error:#}"),
        }
        self.sockets.get(&key).copied()
    }
}
