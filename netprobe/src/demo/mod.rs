//! The incidents, reproduced safely: real sockets and real traffic in network namespaces of their
//! own.
//!
//! - [`Scenario`]: an incident by its id, as [`SCENARIOS`] lists them; one file each in `scenarios/`;
//! - [`stage`]: what it is made of, as data;
//! - [`network`], [`rtnetlink`], [`ctnetlink`]: hosts and cables, without a name and gone with netprobe;
//! - [`cast`], [`workload`]: processes, and what they do;
//! - [`incident`]: all of it made real, watched until it shows, and cured;
//! - [`needs`]: what it needs of the kernel.

pub use scenarios::SCENARIOS;
use stage::Stage;

pub mod cast;
mod ctnetlink;
pub mod incident;
pub mod needs;
pub mod network;
mod rtnetlink;
mod scenarios;
pub mod stage;
pub mod workload;

/// An incident that can be reproduced.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The finding that it must lead to; or a name of its own, where nothing is wrong.
    pub id: &'static str,
    /// What happens, in a line.
    pub about: &'static str,
    /// What is done about it, in a line.
    pub cure: &'static str,
    /// How it is set up.
    pub stage: fn() -> Stage,
    /// The same with the cure applied.
    pub cured: fn() -> Stage,
    /// What is left to cure when the cure has uncovered the next incident, step by step.
    pub later: &'static [fn() -> Stage],
}

/// The incident of this id.
pub fn find(id: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.id == id)
}
