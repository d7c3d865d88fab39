//! What several probes would remember, the lives of connections and the owners of sockets, one of them remembers for all.

use netprobe_common::config::Config;

use crate::probes::{Hook, Keeps, ProbeSpec};

/// Sees every change of state of a socket.
const STATE: &str = "inet_sock_set_state";

/// The kind of no probe.
const NOBODY: u32 = u32::MAX;

/// Who notes down the lives of connections and who the owners of sockets, raw. Lives have owners.
pub(super) fn keepers(probes: &[&ProbeSpec]) -> (u32, u32) {
    let lives = keeper(probes, &[Keeps::Lives, Keeps::States]);
    let owners = if lives == NOBODY {
        keeper(probes, &[Keeps::Owners])
    } else {
        NOBODY
    };
    (lives, owners)
}

/// Of the probes that keep one of these one that sees each change of state anyway, or else the first.
fn keeper(probes: &[&ProbeSpec], kept: &[Keeps]) -> u32 {
    let sees_states = |hook: &'static Hook| {
        let mut attaches = hook.ways.iter().flat_map(|way| way.iter());
        hook.required && attaches.all(|attach| attach.target == STATE)
    };
    let keepers = probes.iter().filter(|spec| kept.contains(&spec.keeps));
    let best = keepers
        .clone()
        .find(|spec| spec.hooks.iter().any(&sees_states));
    let found = best.or_else(|| keepers.clone().next());
    found.map_or(NOBODY, |spec| spec.kind as u32)
}

/// Whether another probe notes down what this one keeps.
pub(super) fn relies_on_another(spec: &ProbeSpec, config: &Config) -> bool {
    let keeper = match spec.keeps {
        Keeps::Nothing | Keeps::Connects => return false,
        Keeps::Owners => config.owners_kept_by,
        Keeps::Lives | Keeps::States => config.lives_kept_by,
    };
    keeper != spec.kind as u32
}
