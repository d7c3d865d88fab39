//! What the kernel shows when asked, beside events: counters, tables and settings.

pub mod cgroups;
pub mod clock;
pub mod conntrack;
pub mod counters;
pub mod cpu_limits;
pub mod descriptors;
pub mod diag;
pub mod hosts;
pub mod interfaces;
pub mod listeners;
pub mod memory;
pub mod namespaces;
pub mod netlink;
pub mod netns;
pub mod owners;
pub mod processes;
pub mod seniority;
pub mod services;
pub mod snapshot;
pub mod sockets;
pub mod softnet;
pub mod stat;
pub mod sysctls;
pub mod threads;
