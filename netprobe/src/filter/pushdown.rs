//! The part of a filter that the programs in the kernel test, and what is left for user space.
//!
//! Only what must hold in any case can go: the kernel tests a conjunction. What does not fit into
//! the places that a [`Filter`] has stays behind; both parts together are the whole, always.

use netprobe_common::filter::{
    ANY, CODES, Cgroup, Codes, Filter, IS, IS_NOT, Name, Number, PREFIXES, Prefixes, RANGES, words,
};

use super::{Expression, Pattern, Ports, Predicate, Prefix, Side, Test, states};
use crate::probes::KernelTest;

/// A filter in its two parts.
#[derive(Clone, Debug)]
pub struct Split {
    /// What the kernel tests.
    pub kernel: Filter,
    /// What user space tests.
    pub rest: Expression,
}

/// Splits `expression` for a probe whose programs make these tests, beside those of flows.
pub fn split(expression: &Expression, tests: &[KernelTest]) -> Split {
    let mut kernel = Kernel {
        filter: Filter::NONE,
        sport: Ports::all(),
        dport: Ports::all(),
        states: states::ALL,
        tests,
    };
    let rest = expression.conjuncts().iter().filter(|part| match part {
        Expression::Test(test) => !kernel.takes(test),
        Expression::And(_) | Expression::Or(_) => true,
    });
    let rest = Expression::And(rest.cloned().collect());
    Split {
        kernel: kernel.filter,
        rest,
    }
}

/// The settings so far.
struct Kernel<'a> {
    filter: Filter,
    sport: Ports,
    dport: Ports,
    states: u32,
    tests: &'a [KernelTest],
}

impl Kernel<'_> {
    /// Adds a test; false if there is no place for it.
    fn takes(&mut self, test: &Test) -> bool {
        let is_negated = test.is_negated;
        let mode = if is_negated { IS_NOT } else { IS };
        let has = |wanted| self.tests.contains(&wanted);
        let filter = &mut self.filter;
        match &test.predicate {
            Predicate::Any => !is_negated,
            Predicate::Address(side, prefixes) => match (side, is_negated) {
                (Side::Source, false) => wants(&mut filter.src, prefixes),
                (Side::Source, true) => refuses(&mut filter.src_not, prefixes),
                (Side::Destination, false) => wants(&mut filter.dst, prefixes),
                (Side::Destination, true) => refuses(&mut filter.dst_not, prefixes),
                (Side::Either, false) => wants(&mut filter.host, prefixes),
                (Side::Either, true) | (Side::Listener, _) => false,
            },
            Predicate::Port(Side::Source, ports) => {
                narrow(&mut self.sport, &mut filter.sport, ports)
            }
            Predicate::Port(Side::Destination, ports) => {
                narrow(&mut self.dport, &mut filter.dport, ports)
            }
            Predicate::Port(Side::Either, ports) => {
                filter.port.len == 0 && set_ports(&mut filter.port, ports)
            }
            Predicate::Port(Side::Listener, _) => false,
            Predicate::Pid(pid) => has(KernelTest::Caller) && set(&mut filter.pid, *pid, mode),
            Predicate::Comm(pattern) => {
                has(KernelTest::Caller) && set_pattern(&mut filter.comm, pattern, mode)
            }
            Predicate::Family(family) => set(&mut filter.family, family.number(), mode),
            Predicate::Netns(inode) => set(&mut filter.netns, *inode, mode),
            Predicate::Cgroup(group) => {
                has(KernelTest::Cgroup) && set_cgroup(&mut filter.cgroup, group.id, mode)
            }
            Predicate::Ifindex(index) => {
                has(KernelTest::Interface) && set(&mut filter.ifindex, *index, mode)
            }
            Predicate::Iface(pattern) => {
                has(KernelTest::Interface) && set_pattern(&mut filter.interface, pattern, mode)
            }
            Predicate::State(states) => {
                if !has(KernelTest::State) || self.states & states == 0 {
                    return false;
                }
                self.states &= states;
                filter.states = if self.states == states::ALL {
                    0
                } else {
                    self.states
                };
                true
            }
            // Not yet looked up: it will be before the programs are loaded.
            Predicate::Reason(reasons) => {
                has(KernelTest::Reason)
                    && reasons
                        .codes()
                        .is_none_or(|codes| set_codes(&mut filter.reasons, &codes, mode))
            }
        }
    }
}

fn set_cgroup(cgroup: &mut Cgroup, id: u64, mode: u32) -> bool {
    let is_free = cgroup.mode == ANY;
    if is_free {
        *cgroup = Cgroup::of(id, mode);
    }
    is_free
}

fn set(number: &mut Number, value: u32, mode: u32) -> bool {
    let is_free = number.mode == 0;
    if is_free {
        *number = Number { value, mode };
    }
    is_free
}

fn set_ports(place: &mut netprobe_common::filter::Ports, ports: &Ports) -> bool {
    let ranges = ports.ranges();
    let Ok(len @ 1..) = u32::try_from(ranges.len()) else {
        return false;
    };
    if ranges.len() > RANGES {
        return false;
    }
    for (range, (low, high)) in place.ranges.iter_mut().zip(ranges) {
        *range = [*low, *high];
    }
    place.len = len;
    true
}

/// Tests of one port are joined: only what all of them leave is tested.
fn narrow(all: &mut Ports, place: &mut netprobe_common::filter::Ports, ports: &Ports) -> bool {
    let both = all.intersection(ports);
    let fits = set_ports(place, &both);
    if fits {
        *all = both;
    }
    fits
}

fn set_pattern(place: &mut Name, pattern: &Pattern, mode: u32) -> bool {
    let is_free = place.mode == ANY;
    is_free
        && pattern
            .exact()
            .is_some_and(|name| set_name(place, name, mode))
}

fn set_name(place: &mut Name, name: &str, mode: u32) -> bool {
    let mut bytes = [0; 16];
    let mut mask = [0; 16];
    if name.len() >= bytes.len() || name.contains('\0') {
        return false;
    }
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    // The NUL after it is part of it.
    mask[..=name.len()].fill(0xff);
    *place = Name {
        words: words(&bytes),
        mask: words(&mask),
        mode,
    };
    true
}

fn set_codes(place: &mut Codes, codes: &[u32], mode: u32) -> bool {
    // Several sets of unwanted codes are one.
    let taken = place.len as usize;
    let is_free = place.mode == 0 || (place.mode == IS_NOT && mode == IS_NOT);
    if !is_free || taken + codes.len() > CODES {
        return false;
    }
    for (slot, code) in place.list[taken..].iter_mut().zip(codes) {
        *slot = *code;
        place.len += 1;
    }
    place.mode = mode;
    true
}

/// The address must be in one of these.
fn wants(place: &mut Prefixes, prefixes: &[Prefix]) -> bool {
    place.len == 0 && !prefixes.is_empty() && refuses(place, prefixes)
}

/// The address must be in none of these, nor in those before.
fn refuses(place: &mut Prefixes, prefixes: &[Prefix]) -> bool {
    let taken = place.len as usize;
    if taken + prefixes.len() > PREFIXES {
        return false;
    }
    for (slot, prefix) in place.list[taken..].iter_mut().zip(prefixes) {
        *slot = prefix.to_wire();
        place.len += 1;
    }
    true
}
