//! What probes do for each other: what several would remember, the lives of connections and the owners of sockets, one of
//! them remembers for all; and where two look at the same place, one program may do for both.

use netprobe_common::{
    config::Config,
    counters::{BY_CGROUP, BY_PROCESS},
};

use super::attach::Attached;
use crate::probes::{Attach, Hook, Keeps, ProbeSpec};

/// Sees every change of state of a socket.
const STATE: &str = "inet_sock_set_state";

/// The kind of no probe.
const NOBODY: u32 = u32::MAX;

/// Who notes down the lives of connections and who the owners of sockets, raw. Lives have owners; where owners are not
/// told, nobody notes them.
pub(super) fn keepers(probes: &[&ProbeSpec], are_told: bool) -> (u32, u32) {
    let lives = keeper(probes, &[Keeps::Lives, Keeps::States]);
    let owners = if lives == NOBODY && are_told {
        keeper(probes, &[Keeps::Owners])
    } else {
        NOBODY
    };
    (lives, owners)
}

/// Whether anything tells the owners of sockets: single events do, and groups that differ in them.
pub(super) const fn are_owners_told(config: &Config) -> bool {
    config.detail != 0 || config.by & (BY_PROCESS | BY_CGROUP) != 0
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

/// Kinds whose events the program of a probe before them finds, a bit for each.
pub(super) fn joined(probes: &[&'static ProbeSpec]) -> u32 {
    let mut kinds = 0;
    for (index, spec) in probes.iter().enumerate() {
        let before = || probes.iter().take(index).flat_map(|before| before.hooks);
        let has_host = |hook| before().any(|host| is_host(host, hook));
        if spec.hooks.iter().any(has_host) {
            kinds |= 1 << spec.kind as u32;
        }
    }
    kinds
}

/// The programs that do the work of `hook`, of those that are attached: none if it has to be attached itself.
pub(super) fn host(
    hook: &'static Hook,
    attached: &[(&'static ProbeSpec, Vec<Attached>)],
) -> Option<&'static [Attach]> {
    let mut hosts = attached.iter().flat_map(|(_, hooks)| hooks);
    let host = hosts.find(|host| is_host(host.hook, hook))?;
    host.result.as_ref().ok().copied()
}

/// Whether the programs of `host` do the work of those of `hook` too. Both have one way.
fn is_host(host: &Hook, hook: &Hook) -> bool {
    let ([[host]], [[attach]]) = (host.ways, hook.ways) else {
        return false;
    };
    attach.within == Some(host.program)
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

/// Whether nobody needs what this probe keeps.
pub(super) fn keeps_in_vain(spec: &ProbeSpec, config: &Config) -> bool {
    spec.keeps == Keeps::Owners && config.owners_kept_by == NOBODY && config.lives_kept_by == NOBODY
}

#[cfg(test)]
mod tests {
    use netprobe_common::{counters::BY_FLOW, record::Plain};

    use super::*;
    use crate::probes::{connects, drops, lifetimes};

    const BOTH: [&ProbeSpec; 2] = [&connects::SPEC, &lifetimes::SPEC];

    #[test]
    fn one_program_does_for_two_where_it_is_asked_for_first() {
        assert_eq!(joined(&BOTH), 1 << lifetimes::SPEC.kind as u32);
        assert_eq!(joined(&[BOTH[1], BOTH[0]]), 0);
        assert_eq!(joined(&BOTH[1..]), 0);
    }

    #[test]
    fn owners_are_noted_only_where_they_are_told() {
        let probes = [&drops::SPEC];
        let of = |config: Config| {
            let (lives_kept_by, owners_kept_by) = keepers(&probes, are_owners_told(&config));
            let config = Config {
                lives_kept_by,
                owners_kept_by,
                ..config
            };
            keeps_in_vain(probes[0], &config)
        };
        let count = Config {
            count: 1,
            by: BY_FLOW,
            ..Config::zeroed()
        };
        assert!(of(count));
        let by_process = count.by | BY_PROCESS;
        assert!(!of(Config {
            by: by_process,
            ..count
        }));
        assert!(!of(Config { detail: 1, ..count }));
    }

    #[test]
    fn a_hook_is_attached_itself_unless_its_host_was() {
        let [host_hook, hook] = BOTH.map(|spec| &spec.hooks[0]);
        let before = |attached| [(BOTH[0], vec![attached])];
        let works = before(Attached::elsewhere(host_hook, host_hook.ways[0]));
        let found = host(hook, &works).map(|programs| programs[0].program);
        assert_eq!(found, Some("connects_state"));
        assert!(host(hook, &before(Attached::refused(host_hook, "no".to_owned()))).is_none());
        assert!(host(host_hook, &works).is_none());
    }
}
