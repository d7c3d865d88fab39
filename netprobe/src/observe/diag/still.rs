//! Services that stand still: requests wait in the receive queues of their connections, and over none of these anything is
//! read or sent. A process that is blocked for seconds and goes on leaves no other trace.

use std::{collections::HashMap, time::Duration};

use anyhow::Result;

use super::{
    CLOSE_WAIT, ESTABLISHED, bounded,
    socket::{Socket, visit},
    unread::SMALL,
};

/// A service stands still when it has done nothing for this long, in milliseconds.
const STILL_MS: u32 = 1000;

/// A service that stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Still {
    /// The port that it listens at.
    pub port: u16,
    /// Accepted connections over which a request arrived [`STILL_MS`] ago or earlier, and was not read.
    pub connections: u32,
    /// The longest time since then, in milliseconds.
    pub longest_ms: u32,
}

impl Still {
    /// The longest time since then.
    pub const fn longest(&self) -> Duration {
        Duration::from_millis(self.longest_ms as u64)
    }
}

/// What goes on at a port.
#[derive(Default)]
struct Activity {
    still: Still,
    /// Whether something was read or sent just now.
    is_any: bool,
}

/// The services, in the namespace that this thread is in, at ports that are listened at, that stand still.
pub fn still(is_served: impl Fn(u16) -> bool) -> Result<Vec<Still>> {
    let mut activities = HashMap::new();
    visit(1 << ESTABLISHED | 1 << CLOSE_WAIT, |socket| {
        if is_served(socket.local_port) {
            add(&mut activities, socket);
        }
    })?;
    let still = activities.into_values().filter_map(|activity| {
        let is_still = !activity.is_any && activity.still.connections > 0;
        is_still.then_some(activity.still)
    });
    Ok(still.collect())
}

fn add(activities: &mut HashMap<u16, Activity>, socket: &Socket) {
    // What was not accepted yet, or is closed, is no matter of who serves.
    let Some(info) = socket.info.filter(|_| socket.ino != 0) else {
        return;
    };
    let Some(activity) = bounded(activities, socket.local_port, Activity::default()) else {
        return;
    };
    activity.still.port = socket.local_port;
    let has_read = socket.receive_queue == 0 && info.since_received_ms < STILL_MS;
    activity.is_any |= has_read || info.since_sent_ms < STILL_MS;
    if let Some(waiting) = socket.unread()
        && waiting.bytes <= SMALL
        && waiting.ms >= STILL_MS
    {
        activity.still.connections += 1;
        activity.still.longest_ms = activity.still.longest_ms.max(waiting.ms);
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
        assert_eq!(still(own).unwrap(), [], "not for long");
        thread::sleep(Duration::from_millis(1100));
        let found = still(own).unwrap();
        assert_eq!((found[0].port, found[0].connections), (address.port(), 3));
        assert!(
            (1000..10_000).contains(&found[0].longest_ms),
            "{}",
            found[0].longest_ms
        );
        assert_eq!(still(|_| false).unwrap(), []);
        served[0].read_exact(&mut [0; 3]).unwrap();
        served[0].write_all(b"answer").unwrap();
        assert_eq!(still(own).unwrap(), [], "one is served");
    }
}
