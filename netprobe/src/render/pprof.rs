//! Stacks as a pprof profile, and back: gzip around a protocol buffer, `profile.proto` of
//! google/pprof.

use std::{
    collections::HashMap,
    io::{Read as _, Write},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::protobuf::{Field, Message, each_field, each_number, fields};
use super::text;
use crate::report::{Flame, Folded};

/// How much of a profile is read.
#[derive(Clone, Copy, Debug)]
struct Most {
    /// Bytes, unpacked.
    bytes: usize,
    /// Entries of its tables.
    entries: usize,
    /// Bytes of its stacks, written out.
    text: usize,
}

const MOST: Most = Most {
    bytes: 64 << 20,
    entries: 4 << 20,
    text: 128 << 20,
};

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
    let about = text::visible(&flame.subtitle);
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
    let comment = strings.number(&about);
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

/// A function without the system's name for it: one that is equal is taken for mangled, and shown without `<...>`.
fn function(id: u64, name: u64) -> Message {
    let mut function = Message::default();
    function.number(1, id);
    function.number(2, name);
    function
}

/// Whether these are the first bytes of a profile that [`read`] can read.
pub fn is_packed(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// What a profile has in it, by the last of its kinds of value, as pprof shows them.
#[derive(Debug, PartialEq, Eq)]
pub struct Read {
    /// What the values are of, and in which unit.
    pub kind: (String, String),
    /// How long it was measured; 0 if that is not said.
    pub elapsed_ns: u64,
    /// The stacks.
    pub stacks: Vec<Folded>,
}

/// Reads a profile.
pub fn read(packed: &[u8]) -> Result<Read> {
    read_at_most(packed, MOST)
}

fn read_at_most(packed: &[u8], most: Most) -> Result<Read> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed)
        .take(most.bytes as u64 + 1)
        .read_to_end(&mut bytes)
        .context("unpack the profile")?;
    if bytes.len() > most.bytes {
        bail!(
            "it unpacks to more than the {} bytes that are read",
            most.bytes
        );
    }
    parse_at_most(&bytes, most)
}

/// A location: functions inlined at it first.
type Locations = HashMap<u64, Vec<u64>>;

/// The tables of a profile.
#[derive(Default)]
struct Tables<'a> {
    kind: (u64, u64),
    elapsed_ns: u64,
    strings: Vec<&'a [u8]>,
    samples: Vec<(Vec<u64>, u64)>,
    locations: Locations,
    functions: HashMap<u64, u64>,
    /// Entries of all of them that may still come.
    room: usize,
    is_full: bool,
}

#[cfg(any(test, fuzzing))]
pub(crate) fn parse(bytes: &[u8]) -> Result<Read> {
    parse_at_most(bytes, MOST)
}

fn parse_at_most(bytes: &[u8], most: Most) -> Result<Read> {
    let mut tables = Tables {
        room: most.entries,
        ..Tables::default()
    };
    let parsed = each_field(bytes, |number, field| tables.take(number, field));
    if tables.is_full {
        bail!(
            "it has more than the {} frames, functions and names that are read",
            most.entries
        );
    }
    parsed.context("not a pprof profile")?;
    let (name, unit) = tables.kind;
    Ok(Read {
        kind: (tables.string(name), tables.string(unit)),
        elapsed_ns: tables.elapsed_ns,
        stacks: tables.stacks(most.text)?,
    })
}

impl<'a> Tables<'a> {
    fn take(&mut self, number: u64, field: Field<'a>) -> Option<()> {
        let bytes = match field {
            Field::Bytes(bytes) => bytes,
            Field::Number(value) if number == 10 => {
                self.elapsed_ns = value;
                return Some(());
            }
            Field::Number(_) => return Some(()),
        };
        match number {
            1 => {
                let kind = fields(bytes)?;
                self.kind = (number_of(&kind, 1), number_of(&kind, 2));
            }
            2 => {
                let sample = self.sample(bytes)?;
                self.samples.push(sample);
            }
            4 => {
                let (id, lines) = parse_location(bytes)?;
                self.count(lines.len())?;
                self.locations.insert(id, lines);
            }
            5 => {
                let function = fields(bytes)?;
                let (id, name) = (number_of(&function, 1), number_of(&function, 2));
                self.functions.insert(id, name);
            }
            6 => self.strings.push(bytes),
            _ => return Some(()),
        }
        self.count(1)
    }

    fn count(&mut self, entries: usize) -> Option<()> {
        let room = self.room.checked_sub(entries);
        self.is_full = room.is_none();
        self.room = room?;
        Some(())
    }

    fn sample(&mut self, bytes: &[u8]) -> Option<(Vec<u64>, u64)> {
        let (mut ids, mut weight) = (Vec::new(), 0);
        each_field(bytes, |number, field| match number {
            1 => each_number(field, |id| {
                self.count(1)?;
                ids.push(id);
                Some(())
            }),
            2 => each_number(field, |value| {
                weight = value;
                Some(())
            }),
            _ => Some(()),
        })?;
        Some((ids, weight))
    }

    /// All stacks. A location may stand for many functions that were inlined, and is in many stacks.
    fn stacks(&self, most: usize) -> Result<Vec<Folded>> {
        let mut names: HashMap<u64, Arc<str>> = HashMap::new();
        let mut room = most;
        let mut stacks = Vec::new();
        for (ids, weight) in &self.samples {
            let mut frames = Vec::new();
            let locations = ids.iter().filter_map(|id| self.locations.get(id));
            for function in locations.flatten() {
                let name = names.entry(*function);
                let name = name.or_insert_with(|| self.function(*function).into());
                let left = room.checked_sub(name.len() + size_of::<Arc<str>>());
                let why = || format!("its stacks are more than the {most} bytes that are read");
                room = left.with_context(why)?;
                frames.push(Arc::clone(name));
            }
            frames.reverse();
            let weight = *weight;
            stacks.push(Folded { frames, weight });
        }
        Ok(stacks)
    }

    fn function(&self, id: u64) -> String {
        let name = self.functions.get(&id);
        name.map_or_else(|| "[unknown]".to_owned(), |name| self.string(*name))
    }

    fn string(&self, number: u64) -> String {
        let number = usize::try_from(number).ok();
        let bytes = number.and_then(|number| self.strings.get(number)).copied();
        String::from_utf8_lossy(bytes.unwrap_or(b"[unknown]")).into_owned()
    }
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
        let kind = ("samples".to_owned(), "count".to_owned());
        let stacks = flame.stacks;
        let expected = Read {
            kind,
            elapsed_ns: 10_000_000_000,
            stacks,
        };
        assert_eq!(read(&packed).unwrap(), expected);
        assert!(read(&packed[..packed.len() / 2]).is_err());
    }

    #[test]
    fn names_are_not_said_to_be_mangled() {
        let function = function(1, 2).into_bytes();
        let numbers = fields(&function).unwrap();
        assert_eq!((number_of(&numbers, 2), number_of(&numbers, 3)), (2, 0));
    }

    #[test]
    fn profiles_that_would_take_all_memory_are_refused() {
        let packed = |bytes: &[u8]| {
            let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
            packer.write_all(bytes).unwrap();
            packer.finish().unwrap()
        };
        let most = Most {
            bytes: 60_000,
            entries: 20_000,
            text: 100_000,
        };
        let refused = read_at_most(&packed(&vec![0; 60_001]), most).unwrap_err();
        let bytes = "it unpacks to more than the 60000 bytes that are read";
        assert_eq!(refused.to_string(), bytes);
        // Empty strings, of two bytes each; locations in one sample; and one that stands for many functions.
        let strings = [6 << 3 | 2, 0].repeat(20_001);
        let mut sample = Message::default();
        sample.numbers(1, &vec![1; 20_001]);
        let mut deep = Message::default();
        deep.message(2, &sample);
        let mut line = Message::default();
        line.number(1, 1);
        let mut location = Message::default();
        location.number(1, 1);
        (0..500).for_each(|_| location.message(4, &line));
        let mut sample = Message::default();
        sample.numbers(1, &[1; 500]);
        let mut inlined = Message::default();
        inlined.message(4, &location);
        inlined.message(2, &sample);
        let entries = "it has more than the 20000 frames, functions and names that are read";
        let text = "its stacks are more than the 100000 bytes that are read";
        for (bytes, why) in [
            (strings, entries),
            (deep.into_bytes(), entries),
            (inlined.into_bytes(), text),
        ] {
            let refused = parse_at_most(&bytes, most).unwrap_err();
            assert_eq!(refused.to_string(), why);
        }
    }
}
