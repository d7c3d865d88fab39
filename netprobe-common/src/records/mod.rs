//! One file per probe: the record that it sends. Shared parts ([`Flow`], [`Owner`]) live here.

pub use crate::{flow::Flow, owner::Owner};

pub mod connects;
pub mod conntrack;
pub mod drops;
pub mod listeners;
pub mod retransmits;

/// `stack` of a record that carries none.
pub const NO_STACK: i32 = -1;
