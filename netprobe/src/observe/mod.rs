//! What the kernel shows in `/proc`, beside events.

pub mod owners;
