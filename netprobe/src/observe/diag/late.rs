//! Requests that are read late: they wait in the receive queues of the connections of a service. Where over none of these
//! anything is read or sent, the service stands still; a process that is blocked for seconds and goes on leaves no other trace.

use std::{collections::HashMap, time::Duration};

use anyhow::Result;

use super::{
    CLOSE_WAIT, ESTABLISHED, bounded,
    socket::{Socket, visit},
    unread::SMALL,
};

/// A request is late from here on, in milliseconds, and a service stands still that has done nothing for so long.
pub const LATE_MS: u32 = 1000;

/// A service that reads requests late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// The port that it listens at.
    pub port: u16,
    /// Accepted connections over which a request arrived [`LATE_MS`] ago or earlier, and was not read.
    pub connections: u32,
    /// The longest time since then, in milliseconds.
    pub longest_ms: u32,
    /// Whether it stands still, as far as one look can tell.
    pub is_still: bool,
    /// Bytes that it has read so far over the connections that it holds.
    pub read: u64,
}

impl Late {
    /// The longest time since then.
    pub const fn longest(&self) -> Duration {
        Duration::from_millis(self.longest_ms as u64)
    }
}

/// The services, in the namespace that this thread is in, at ports that are listened at, that read requests late.
pub fn late(is_served: impl Fn(u16) -> bool) -> Result<Vec<Late>> {
    let mut services = HashMap::new();
    visit(1 << ESTABLISHED | 1 << CLOSE_WAIT, |socket| {
        if is_served(socket.local_port) {
            add(&mut services, socket);
        }
    })?;
    let late = services.into_values();
    Ok(late.filter(|late| late.connections > 0).collect())
}

fn add(services: &mut HashMap<u16, Late>, socket: &Socket) {
    // What was not accepted yet, or is closed, is no matter of who serves.
    let Some(info) = socket.info.filter(|_| socket.ino != 0) else {
        return;
    };
    let unknown = Late {
        port: socket.local_port,
        is_still: true,
        ..Late::default()
    };
    let Some(late) = bounded(services, socket.local_port, unknown) else {
        return;
    };
    let has_read = socket.receive_queue == 0 && info.since_received_ms < LATE_MS;
    late.is_still &= !has_read && info.since_sent_ms >= LATE_MS;
    late.read += info
        .bytes_received
        .saturating_sub(socket.unread_bytes().into());
    if let Some(waiting) = socket.unread()
        && waiting.bytes <= SMALL
        && waiting.ms >= LATE_MS
    {
        late.connections += 1;
        late.longest_ms = late.longest_ms.max(waiting.ms);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
        time::Duration,
    };

    use super::*;

    #[test]
    fn who_reads_nothing_stands_still_until_he_serves_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = [0; 3].map(|_| TcpStream::connect(address).unwrap());
        let mut served = [0; 3].map(|_| listener.accept().unwrap().0);
        for client in &mut clients {
            client.write_all(b"ask").unwrap();
        }
        let own = |port| port == address.port();
        assert_eq!(late(own).unwrap(), [], "not for long");
        thread::sleep(Duration::from_millis(1100));
        let found = late(own).unwrap();
        assert!(found[0].is_still);
        assert_eq!((found[0].port, found[0].connections), (address.port(), 3));
        assert!(
            (1000..10_000).contains(&found[0].longest_ms),
            "{}",
            found[0].longest_ms
        );
        assert_eq!(late(|_| false).unwrap(), []);
        served[0].read_exact(&mut [0; 3]).unwrap();
        served[0].write_all(b"answer").unwrap();
        let found = late(own).unwrap();
        assert_eq!(
            (found[0].connections, found[0].is_still),
            (2, false),
            "one is served"
        );
    }
}
