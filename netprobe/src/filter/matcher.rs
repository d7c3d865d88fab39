//! A filter on rows: each test knows the place of its columns.

use super::{Expression, Family, Predicate, Side, Test, states};
use crate::observe::cgroups;
use crate::report::{Column, Row, Value, name_bytes};

/// A filter for rows of one layout.
#[derive(Clone, Debug)]
pub struct Matcher {
    expression: Expression,
    places: Places,
}

/// Where the values are; none for a column that the layout lacks.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Address and port of the source, the destination and the listener.
    ends: [[Option<usize>; 2]; 3],
    family: Option<usize>,
    state: Option<usize>,
    iface: Option<usize>,
    ifindex: Option<usize>,
    pid: Option<usize>,
    comm: Option<usize>,
    reason: Option<usize>,
    netns: Option<usize>,
    cgroup: Option<usize>,
}

impl Matcher {
    /// A filter for rows with these columns.
    pub fn new(expression: Expression, columns: &[Column]) -> Self {
        let place = |name| columns.iter().position(|column| column.name == name);
        Self {
            expression,
            places: Places {
                ends: [
                    [place("saddr"), place("sport")],
                    [place("daddr"), place("dport")],
                    [place("listener"), place("listener_port")],
                ],
                family: place("family"),
                state: place("state"),
                iface: place("iface"),
                ifindex: place("ifindex"),
                pid: place("pid"),
                comm: place("comm"),
                reason: place("reason"),
                netns: place("netns"),
                cgroup: place("cgroup"),
            },
        }
    }

    /// Whether it wants everything.
    pub fn is_empty(&self) -> bool {
        self.expression.conjuncts().is_empty()
    }

    /// Whether it wants `row`.
    pub fn admits(&self, row: &Row) -> bool {
        self.holds(&self.expression, row)
    }

    fn holds(&self, expression: &Expression, row: &Row) -> bool {
        match expression {
            Expression::Test(test) => self.passes(test, row),
            Expression::And(parts) => parts.iter().all(|part| self.holds(part, row)),
            Expression::Or(parts) => parts.iter().any(|part| self.holds(part, row)),
        }
    }

    fn passes(&self, test: &Test, row: &Row) -> bool {
        let places = &self.places;
        let value = |place: Option<usize>| {
            let value = place.and_then(|place| row.values.get(place));
            value.unwrap_or(&Value::Unknown)
        };
        let is_number = |place, number: u32| *value(place) == Value::Unsigned(u64::from(number));
        let answer = match &test.predicate {
            Predicate::Any => true,
            Predicate::Address(side, prefixes) => places.ends(*side).iter().any(|[address, _]| {
                let Value::Ip(address) = value(*address) else {
                    return false;
                };
                let family = match value(places.family) {
                    // A listener is of its own family, whatever the packet is.
                    _ if *side == Side::Listener => family_of(*address),
                    Value::Word("ipv4") => Family::V4,
                    Value::Word("ipv6" | "ipv4-mapped") => Family::V6,
                    _ => family_of(*address),
                };
                prefixes
                    .iter()
                    .any(|prefix| prefix.contains(family, *address))
            }),
            Predicate::Port(side, ports) => places.ends(*side).iter().any(|[_, port]| {
                matches!(value(*port), Value::Unsigned(port)
                    if u16::try_from(*port).is_ok_and(|port| ports.contains(port)))
            }),
            Predicate::Family(Family::V4) => *value(places.family) == Value::Word("ipv4"),
            Predicate::Family(Family::V6) => {
                matches!(value(places.family), Value::Word("ipv6" | "ipv4-mapped"))
            }
            Predicate::State(states) => states::contain(*states, value(places.state)),
            Predicate::Iface(pattern) => is_named(pattern, value(places.iface)),
            Predicate::Comm(pattern) => is_named(pattern, value(places.comm)),
            Predicate::Ifindex(index) => is_number(places.ifindex, *index),
            Predicate::Pid(pid) => is_number(places.pid, *pid),
            Predicate::Netns(inode) => is_number(places.netns, *inode),
            Predicate::Cgroup(wanted) => {
                matches!(value(places.cgroup), Value::Text(path)
                    if cgroups::is_within(path, &wanted.path))
            }
            Predicate::Reason(reasons) => {
                reasons
                    .found()
                    .iter()
                    .any(|(code, name)| match value(places.reason) {
                        Value::Text(shown) => **shown == **name,
                        Value::Unsigned(shown) => *shown == u64::from(*code),
                        _ => false,
                    })
            }
        };
        answer != test.is_negated
    }
}

impl Places {
    fn ends(&self, side: Side) -> &[[Option<usize>; 2]] {
        match side {
            Side::Source => &self.ends[..1],
            Side::Destination => &self.ends[1..2],
            Side::Either => &self.ends[..2],
            Side::Listener => &self.ends[2..],
        }
    }
}

const fn family_of(address: std::net::IpAddr) -> Family {
    if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

fn is_named(pattern: &super::Pattern, name: &Value) -> bool {
    match name {
        Value::Name(bytes) => pattern.matches(name_bytes(bytes)),
        Value::Text(text) => pattern.matches(text.as_bytes()),
        Value::Word(word) => pattern.matches(word.as_bytes()),
        _ => false,
    }
}
