//! Stacks as a pprof profile, and back: gzip around a protocol buffer, `profile.proto` of
//! google/pprof.

use std::{
    collections::HashMap,
    io::{Read, Write},
};

use anyhow::{Context, Result};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::protobuf::{Field, Message, fields, numbers};
use crate::report::{Flame, Folded};

/// Bytes of a profile that are read, unpacked.
const MOST_BYTES: u64 = 1 << 30;

/// Strings, each once; the first is empty.
struct Strings<'a> {
    list: Vec<&'a str>,
    numbers: HashMap<&'a str, u64>,
}

impl<'a> Strings<'a> {
    fn number(&mut self, text: &'a str) -> u64 {
        *self.numbers.entry(text).or_insert_with(|| {
            self.list.push(text);
            self.list.len() as u64 - 1
        })
    }
}

/// Writes the stacks. A frame is a function and a location at once; there are no addresses.
pub fn write(out: &mut dyn Write, flame: &Flame) -> Result<()> {
    let mut strings = Strings {
        list: vec![""],
        numbers: HashMap::from([("", 0)]),
    };
    let mut profile = Message::default();
    profile.message(
        1,
        &value_type(&mut strings, flame.profile.name, flame.profile.unit),
    );
    let mut locations: HashMap<&str, u64> = HashMap::new();
    let mut tables = Message::default();
    for stack in &flame.stacks {
        let mut innermost_first = Vec::new();
        for frame in stack.frames.iter().rev() {
            let next = locations.len() as u64 + 1;
            let id = *locations.entry(frame).or_insert_with(|| {
                let name = strings.number(frame);
                tables.message(4, &location(next));
                tables.message(5, &function(next, name));
                next
            });
            innermost_first.push(id);
        }
        let mut sample = Message::default();
        sample.numbers(1, &innermost_first);
        sample.numbers(2, &[stack.weight]);
        profile.message(2, &sample);
    }
    let comment = strings.number(&flame.subtitle);
    let period_type = value_type(&mut strings, "cpu", "nanoseconds");
    let mut bytes = profile.into_bytes();
    bytes.extend(tables.into_bytes());
    let mut rest = Message::default();
    for text in &strings.list {
        rest.bytes(6, text.as_bytes());
    }
    rest.number(9, flame.profile.unix_ns.unsigned_abs());
    rest.number(10, u64::try_from(flame.profile.elapsed.as_nanos())?);
    if flame.profile.period_ns > 0 {
        rest.message(11, &period_type);
        rest.number(12, flame.profile.period_ns);
    }
    rest.numbers(13, &[comment]);
    bytes.extend(rest.into_bytes());
    let mut packed = GzEncoder::new(out, Compression::fast());
    packed.write_all(&bytes)?;
    packed.finish()?;
    Ok(())
}

fn value_type<'a>(strings: &mut Strings<'a>, name: &'a str, unit: &'a str) -> Message {
    let mut message = Message::default();
    message.number(1, strings.number(name));
    message.number(2, strings.number(unit));
    message
}

fn location(id: u64) -> Message {
    let mut line = Message::default();
    line.number(1, id);
    let mut location = Message::default();
    location.number(1, id);
    location.message(4, &line);
    location
}

fn function(id: u64, name: u64) -> Message {
    let mut function = Message::default();
    function.number(1, id);
    function.number(2, name);
    function.number(3, name);
    function
}

/// Whether these are the first bytes of a profile that [`read`] can read.
pub fn is_packed(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// Reads the stacks of a profile, by the last of its kinds of value, as pprof shows them.
pub fn read(packed: &[u8]) -> Result<Vec<Folded>> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed)
        .take(MOST_BYTES)
        .read_to_end(&mut bytes)
        .context("unpack the profile")?;
    parse(&bytes).context("not a pprof profile")
}

/// A location: functions inlined at it first.
type Locations = HashMap<u64, Vec<u64>>;

pub(crate) fn parse(bytes: &[u8]) -> Option<Vec<Folded>> {
    let mut strings: Vec<&[u8]> = Vec::new();
    let mut samples: Vec<(Vec<u64>, u64)> = Vec::new();
    let mut locations = Locations::new();
    let mut functions: HashMap<u64, u64> = HashMap::new();
    for (number, field) in fields(bytes)? {
        let Field::Bytes(bytes) = field else { continue };
        match number {
            2 => samples.push(parse_sample(bytes)?),
            4 => {
                let (id, lines) = parse_location(bytes)?;
                locations.insert(id, lines);
            }
            5 => {
                let function = fields(bytes)?;
                functions.insert(number_of(&function, 1), number_of(&function, 2));
            }
            6 => strings.push(bytes),
            _ => {}
        }
    }
    let name = |function: &u64| {
        let string = functions
            .get(function)
            .and_then(|name| usize::try_from(*name).ok());
        let bytes = string.and_then(|name| strings.get(name)).copied();
        String::from_utf8_lossy(bytes.unwrap_or(b"[unknown]")).into_owned()
    };
    let stacks = samples.into_iter().map(|(ids, weight)| {
        let lines = ids.iter().filter_map(|id| locations.get(id)).flatten();
        let mut frames: Vec<_> = lines.map(|function| name(function).into()).collect();
        frames.reverse();
        Folded { frames, weight }
    });
    Some(stacks.collect())
}

fn parse_sample(bytes: &[u8]) -> Option<(Vec<u64>, u64)> {
    let (mut ids, mut values) = (Vec::new(), Vec::new());
    for (number, field) in fields(bytes)? {
        match number {
            1 => ids.extend(numbers(field)?),
            2 => values.extend(numbers(field)?),
            _ => {}
        }
    }
    Some((ids, values.last().copied().unwrap_or(0)))
}

fn parse_location(bytes: &[u8]) -> Option<(u64, Vec<u64>)> {
    let location = fields(bytes)?;
    let mut lines = Vec::new();
    for (number, field) in &location {
        if let (4, Field::Bytes(bytes)) = (number, field) {
            lines.push(number_of(&fields(bytes)?, 1));
        }
    }
    Some((number_of(&location, 1), lines))
}

fn number_of(message: &[(u64, Field<'_>)], wanted: u64) -> u64 {
    let found = message.iter().find_map(|(number, field)| match field {
        Field::Number(value) if *number == wanted => Some(*value),
        _ => None,
    });
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Palette, Profile};
    use std::time::Duration;

    #[test]
    fn stacks_are_read_as_they_were_written() {
        let stack = |names: &[&str], weight| Folded {
            frames: names.iter().map(|name| (*name).into()).collect(),
            weight,
        };
        let flame = Flame {
            title: "title".into(),
            subtitle: "host".into(),
            unit: "samples",
            palette: Palette::Hot,
            profile: Profile {
                name: "samples",
                unit: "count",
                elapsed: Duration::from_secs(10),
                unix_ns: 1,
                period_ns: 10_101_010,
            },
            stacks: vec![stack(&["a", "b"], 300), stack(&["a", "c", "b"], 1)],
        };
        let mut packed = Vec::new();
        write(&mut packed, &flame).unwrap();
        assert!(is_packed(&packed));
        assert_eq!(read(&packed).unwrap(), flame.stacks);
        assert!(read(&packed[..packed.len() / 2]).is_err());
    }
}
