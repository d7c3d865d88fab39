//! The wire between kernel and user space: what the eBPF programs write and `netprobe` reads.
//!
//! - [`record`]: the `record!` macro, and reading records out of untrusted bytes.
//! - [`header`]: what every event begins with, and the `kinds!` list.
//! - [`records`]: one file per probe; [`flow`] and [`owner`] are the parts that they share.
//! - [`config`], [`offsets`]: frozen globals that user space sets before loading.
//! - [`filter`]: the part of them that says which events are wanted, and how that is tested.
//! - [`names`]: questions for names of kernel functions.
//! - [`counters`]: the per-CPU accounting and the keys of the in-kernel aggregates.
//!
//! `no_std` and without dependencies, so that both sides compile the very same definitions.
#![cfg_attr(not(test), no_std)]

pub mod config;
pub mod counters;
pub mod filter;
pub mod flow;
pub mod header;
pub mod names;
pub mod offsets;
pub mod owner;
pub mod record;
pub mod records;
pub mod samples;
