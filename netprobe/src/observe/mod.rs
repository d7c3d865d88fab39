//! What the kernel shows when asked, beside events.

pub mod owners;
pub mod sockets;
