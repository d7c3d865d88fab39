//! What the kernel shows in `/proc`, beside events.

pub mod netns;
pub mod owners;
pub mod services;
