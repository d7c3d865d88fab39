//! What the kernel shows when asked, beside events.

pub mod cgroups;
pub mod listeners;
pub mod netns;
pub mod owners;
pub mod services;
pub mod sockets;
