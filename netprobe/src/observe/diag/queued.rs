//! What waits in the queues of connections, and takes TCP's memory meanwhile.

use super::socket::Socket;

/// What waits in the queues of the connections of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Connections with something that waits.
    pub connections: u32,
    /// Bytes that were received and not read.
    pub received: u64,
    /// Bytes that were written and not acknowledged.
    pub sent: u64,
    /// Most bytes of one connection.
    pub most: u64,
    /// Inode number of its socket.
    pub ino: u64,
}

impl Queued {
    pub(super) fn add(&mut self, socket: &Socket) {
        let bytes = socket.queued();
        self.connections += 1;
        self.received += u64::from(socket.receive_queue);
        self.sent += u64::from(socket.send_queue);
        if bytes > self.most {
            (self.most, self.ino) = (bytes, socket.ino.into());
        }
    }

    /// All bytes.
    pub const fn bytes(&self) -> u64 {
        self.received + self.sent
    }
}
