//! An event as JSON Lines have it, and its columns.

use serde_json::Value;

/// One event: its columns by name.
pub type Event = serde_json::Map<String, Value>;

/// A column of an event; panics if it is not there at all.
#[track_caller]
pub fn column_of<'a>(event: &'a Event, name: &str) -> &'a Value {
    let value = event.get(name);
    value.unwrap_or_else(|| panic!("no {name} in {event:?}"))
}

/// A column that holds a number.
#[track_caller]
pub fn number(event: &Event, name: &str) -> u64 {
    let value = column_of(event, name);
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{name} is {value}: {event:?}"))
}

/// A column that holds a text.
#[track_caller]
pub fn text<'a>(event: &'a Event, name: &str) -> &'a str {
    let value = column_of(event, name);
    value
        .as_str()
        .unwrap_or_else(|| panic!("{name} is {value}: {event:?}"))
}

/// The sum of a column of numbers.
#[track_caller]
#[expect(single_use_lifetimes, reason = "`impl Trait` cannot elide it yet")]
pub fn sum<'a>(events: impl IntoIterator<Item = &'a Event>, name: &str) -> u64 {
    events.into_iter().map(|event| number(event, name)).sum()
}
