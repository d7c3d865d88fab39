//! Connections that ended, of which many more are remembered than events are kept: whoever looks for one must find it beside
//! thousands of others.

use std::collections::HashMap;

use super::{
    events::Event,
    places::{self, End},
};

/// Most that are remembered; a megabyte.
const MOST: usize = 16_384;
/// Who waits for longer before it gives up wanted an answer.
const CHECK_NS: u64 = 1_000_000_000;

/// A connection by its namespace and ends, the local one first.
type Connection = (u32, End, End);

/// A fair sample of the connections that ended, and whether each was a check.
#[derive(Clone, Debug, Default)]
pub(super) struct Ended {
    checks: HashMap<Connection, bool>,
    kept: Vec<Connection>,
    seen: u64,
}

impl Ended {
    /// Adds one. Once there is no more room, each so far has the same chance to be in it.
    pub(super) fn add(&mut self, end: &Event, random: u64) {
        let Some((connection, is_check)) = connection(end).zip(is_check(end)) else {
            return;
        };
        self.seen += 1;
        if self.kept.len() < MOST {
            self.kept.push(connection);
        } else {
            let place = usize::try_from(random % self.seen).unwrap_or(usize::MAX);
            let Some(slot) = self.kept.get_mut(place) else {
                return;
            };
            self.checks.remove(slot);
            *slot = connection;
        }
        self.checks.insert(connection, is_check);
    }

    /// Whether the connection of an event was a check; `None` if it is not known to have ended.
    pub(super) fn was_check(&self, event: &Event) -> Option<bool> {
        self.checks.get(&connection(event)?).copied()
    }

    /// Whether all of so many that ended are remembered.
    pub(super) const fn are_all(&self, count: u64) -> bool {
        self.kept.len() as u64 >= count
    }
}

fn connection(event: &Event) -> Option<Connection> {
    let (local, remote) = places::ends(event)?;
    Some((event.netns()?, local, remote))
}

/// Whether it was opened from here, closed soon, and nothing had been sent; `None` where nobody saw when it was opened.
fn is_check(end: &Event) -> Option<bool> {
    if !end.is("role", "client") || end.number("bytes_sent") != Some(0) {
        return Some(false);
    }
    Some(end.number("duration_ns")? <= CHECK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{probes::lifetimes, report::Value};

    fn end(port: u64, sent: u64, ns: impl Into<Option<u64>>) -> Event {
        let duration = ns.into().map_or(Value::Unknown, Value::Unsigned);
        let columns = lifetimes::SPEC.columns;
        let mut values = vec![Value::Unknown; columns.len()];
        for (name, value) in [
            ("netns", Value::Unsigned(1)),
            ("role", Value::Word("client")),
            ("saddr", Value::Ip([10, 0, 0, 1].into())),
            ("sport", Value::Unsigned(port)),
            ("daddr", Value::Ip([10, 0, 0, 2].into())),
            ("dport", Value::Unsigned(3306)),
            ("bytes_sent", Value::Unsigned(sent)),
            ("duration_ns", duration),
        ] {
            let index = columns.iter().position(|column| column.name == name);
            values[index.unwrap()] = value;
        }
        Event::new(columns, values)
    }

    #[test]
    fn a_check_says_nothing_and_closes_soon() {
        let mut ended = Ended::default();
        for (port, sent, ns, expected) in [
            (1, 0, 1000, true),
            (2, 9, 1000, false),
            (3, 0, 3_000_000_000, false),
        ] {
            let end = end(port, sent, ns);
            assert_eq!(ended.was_check(&end), None);
            ended.add(&end, 0);
            assert_eq!(ended.was_check(&end), Some(expected), "{port}");
        }
        let unknown = end(4, 0, None);
        ended.add(&unknown, 0);
        assert_eq!(ended.was_check(&unknown), None);
        assert!(ended.are_all(3));
        assert!(!ended.are_all(4));
    }

    #[test]
    fn it_stays_the_same_size() {
        let mut ended = Ended::default();
        let most = MOST as u64;
        for port in 0..most {
            ended.add(&end(port % 60_000, 0, 1), 0);
        }
        ended.add(&end(60_001, 0, 1), 5);
        assert_eq!(ended.kept.len(), MOST);
        assert_eq!(ended.was_check(&end(60_001, 0, 1)), Some(true));
        assert_eq!(ended.was_check(&end(5, 0, 1)), None);
        ended.add(&end(60_002, 0, 1), most);
        assert_eq!(ended.was_check(&end(60_002, 0, 1)), None);
    }
}
