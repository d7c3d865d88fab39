//! Where records come from: the live ring.

pub mod live;
