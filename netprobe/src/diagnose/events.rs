//! The events of a window: exact totals from the kernel, and a fair sample of single events, which
//! stays the same size however many there were.

use std::{collections::BTreeMap, net::IpAddr};

use super::ended::Ended;
use crate::report::{Column, Row, Total, Value, name_bytes};

/// Most events of a kind that are kept.
const SAMPLE: usize = 1024;

/// A process by its id and name, as far as they are known.
pub type Owner = (Option<u32>, Option<String>);

/// One event, whose values are found by the names of its columns.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it happened, in nanoseconds of the monotonic clock; 0 where that is not known.
    pub at_ns: u64,
    columns: &'static [Column],
    values: Box<[Value]>,
}

impl Event {
    /// An event with a value for each column.
    pub fn new(columns: &'static [Column], values: impl Into<Box<[Value]>>) -> Self {
        Self {
            at_ns: 0,
            columns,
            values: values.into(),
        }
    }

    /// The value of a column; unknown where there is no such column.
    pub fn value(&self, name: &str) -> &Value {
        let index = self.columns.iter().position(|column| column.name == name);
        index
            .and_then(|index| self.values.get(index))
            .unwrap_or(&Value::Unknown)
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name) {
            Value::Unsigned(number) => Some(*number),
            _ => None,
        }
    }

    /// A number that fits, such as a port or a process id.
    pub fn small<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        self.number(name)?.try_into().ok()
    }

    /// An address.
    pub fn ip(&self, name: &str) -> Option<IpAddr> {
        match self.value(name) {
            Value::Ip(address) => Some(*address),
            _ => None,
        }
    }

    /// A word or a name.
    pub fn text(&self, name: &str) -> Option<String> {
        text(self.value(name))
    }

    /// The process that its socket belongs to.
    pub fn owner(&self) -> Owner {
        (self.small("pid"), self.text("comm"))
    }

    /// Whether a column holds this word.
    pub fn is(&self, name: &str, word: &str) -> bool {
        is(self.value(name), word)
    }

    /// The namespace that it happened in.
    pub fn netns(&self) -> Option<u32> {
        self.small("netns")
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Word(word) => Some((*word).to_owned()),
        Value::Text(text) => Some(text.to_string()),
        Value::Name(name) => Some(String::from_utf8_lossy(name_bytes(name)).into_owned()),
        _ => None,
    }
}

fn is(value: &Value, word: &str) -> bool {
    match value {
        Value::Word(found) => *found == word,
        Value::Text(found) => **found == *word,
        Value::Unsigned(number) => word.parse() == Ok(*number),
        _ => false,
    }
}

/// Events of one kind.
#[derive(Clone, Debug, Default)]
struct Sample {
    seen: u64,
    kept: Vec<Event>,
}

/// All events of a window.
#[derive(Clone, Debug)]
pub struct Events {
    samples: BTreeMap<&'static str, Sample>,
    ended: Ended,
    /// Totals by group, counted in the kernel.
    pub totals: Vec<Total>,
    random: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            samples: BTreeMap::new(),
            ended: Ended::default(),
            totals: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Events {
    /// Adds an event. Once the sample is full, each event so far has the same chance to be in it.
    pub fn add(&mut self, columns: &'static [Column], row: &Row) {
        let random = self.next_random();
        let event = || Event {
            at_ns: row.monotonic_ns,
            ..Event::new(columns, row.values.clone())
        };
        if row.kind == "lifetimes" {
            self.ended.add(&event(), random);
        }
        let sample = self.samples.entry(row.kind).or_default();
        sample.seen += 1;
        if sample.kept.len() < SAMPLE {
            sample.kept.push(event());
            return;
        }
        let place = usize::try_from(random % sample.seen).unwrap_or(usize::MAX);
        if let Some(slot) = sample.kept.get_mut(place) {
            *slot = event();
        }
    }

    /// Marsaglia's xorshift: nobody can gain from guessing which event is kept.
    const fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Puts what they mean in the place of the numbers in a column.
    pub fn translate(&mut self, column: &str, mut meaning: impl FnMut(u64) -> Value) {
        let kept = self
            .samples
            .values_mut()
            .flat_map(|sample| &mut sample.kept);
        for event in kept {
            let mut columns = event.columns.iter();
            let index = columns.position(|found| found.name == column);
            if let Some(value) = index.and_then(|index| event.values.get_mut(index))
                && let Value::Unsigned(number) = *value
            {
                *value = meaning(number);
            }
        }
    }

    /// The events of a kind that were kept.
    pub fn of(&self, kind: &str) -> &[Event] {
        self.samples
            .get(kind)
            .map_or(&[], |sample| sample.kept.as_slice())
    }

    /// The events of a kind in a namespace.
    pub fn within(&self, kind: &str, netns: u32) -> impl Iterator<Item = &Event> {
        self.of(kind)
            .iter()
            .filter(move |event| event.netns() == Some(netns))
    }

    /// Leaves out all events of a kind, as where the ring had no room for them; totals are not of them.
    #[cfg(test)]
    pub(super) fn forget(&mut self, kind: &str) {
        self.samples.remove(kind);
    }

    /// Connections that ended, as far as they were seen.
    pub(super) const fn ended(&self) -> &Ended {
        &self.ended
    }

    /// Adds an event as it is.
    #[cfg(test)]
    pub(super) fn keep(&mut self, kind: &'static str, event: Event) {
        if kind == "lifetimes" {
            self.ended.add(&event, 0);
        }
        self.samples.entry(kind).or_default().kept.push(event);
    }

    /// Says of the events of a kind when they happened.
    #[cfg(test)]
    pub(super) fn date(&mut self, kind: &str, at_ns: u64) {
        let kept = self.samples.get_mut(kind);
        for event in kept.into_iter().flat_map(|sample| &mut sample.kept) {
            event.at_ns = at_ns;
        }
    }

    /// Says of the last event of a kind when it happened.
    #[cfg(test)]
    pub(super) fn date_last(&mut self, kind: &str, at_ns: u64) {
        let sample = self.samples.get_mut(kind);
        if let Some(event) = sample.and_then(|sample| sample.kept.last_mut()) {
            event.at_ns = at_ns;
        }
    }

    /// Says of all events so far that they happened elsewhere.
    #[cfg(test)]
    pub(super) fn relocate(&mut self, netns: &Value) {
        let kept = self
            .samples
            .values_mut()
            .flat_map(|sample| &mut sample.kept);
        for event in kept {
            let index = event
                .columns
                .iter()
                .position(|column| column.name == "netns");
            if let Some(value) = index.and_then(|index| event.values.get_mut(index)) {
                *value = netns.clone();
            }
        }
    }

    /// How many events of a kind each one that was kept stands for.
    pub fn weight(&self, kind: &str) -> f64 {
        let kept = self.of(kind).len();
        if kept == 0 {
            return 1.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let weight = self.count(kind, &[]) as f64 / kept as f64;
        weight.max(1.0)
    }

    /// How many events of a kind the kernel counted in all groups with these values.
    pub fn count(&self, kind: &str, group: &[(&str, &str)]) -> u64 {
        self.groups(kind, group).map(|total| total.events).sum()
    }

    /// The groups of a kind with these values.
    pub fn groups<'a>(
        &'a self,
        kind: &'a str,
        group: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Total> {
        self.totals.iter().filter(move |total| {
            total.kind == kind && group.iter().all(|(name, word)| has(total, name, word))
        })
    }
}

/// What a total is of, by the name of a column; unknown if it was not counted by that.
pub fn value_of<'a>(total: &'a Total, name: &str) -> &'a Value {
    let mut group = total.group.iter();
    let found = group.find(|(found, _)| *found == name);
    found.map_or(&Value::Unknown, |(_, value)| value)
}

/// The port that a total is of.
pub fn port_of(total: &Total, name: &str) -> Option<u16> {
    match value_of(total, name) {
        Value::Unsigned(port) => u16::try_from(*port).ok(),
        _ => None,
    }
}

fn has(total: &Total, name: &str, word: &str) -> bool {
    is(value_of(total, name), word)
}

#[cfg(test)]
mod tests {
    use super::*;

    static COLUMNS: &[Column] = &[Column::number("port", "PORT", 5, "a port")];

    fn row(port: u64) -> Row {
        Row {
            kind: "drops",
            values: vec![Value::Unsigned(port)],
            ..Row::default()
        }
    }

    #[test]
    fn a_sample_keeps_its_size_and_is_fair() {
        let mut events = Events::default();
        for number in 0..100_000 {
            events.add(COLUMNS, &row(number));
        }
        let kept = events.of("drops");
        assert_eq!(kept.len(), SAMPLE);
        let late = kept
            .iter()
            .filter(|event| event.number("port") >= Some(50_000))
            .count();
        assert!((SAMPLE / 3..SAMPLE * 2 / 3).contains(&late), "{late}");
    }

    #[test]
    fn totals_are_found_by_their_groups() {
        let total = |reason, netns: u64, events| Total {
            kind: "drops",
            group: vec![
                ("reason", Value::Word(reason)),
                ("netns", Value::Unsigned(netns)),
            ],
            events,
            weight: 0,
        };
        let events = Events {
            totals: vec![total("A", 1, 3), total("A", 2, 4), total("B", 1, 5)],
            ..Events::default()
        };
        assert_eq!(events.count("drops", &[("reason", "A")]), 7);
        assert_eq!(events.count("drops", &[("netns", "1")]), 8);
        assert_eq!(events.count("drops", &[("reason", "B"), ("netns", "2")]), 0);
        assert_eq!(events.count("resets", &[]), 0);
    }
}
