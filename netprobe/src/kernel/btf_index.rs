//! Finds types by name in raw BTF, all wanted names in one pass.
//!
//! A kernel has some 100,000 types; asking for each name by itself would take longer than
//! everything else at start. Layout: `include/uapi/linux/btf.h`.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use aya::{Btf, Endianness};
use aya_obj::btf::{BtfType, Func, FuncLinkage};

/// The types with each wanted name.
pub type Index = HashMap<String, Vec<Found>>;

/// A type with a wanted name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number, counted from one.
    pub id: u32,
    /// Its kind and more, see `struct btf_type`.
    info: u32,
    /// The type that it refers to, or its size.
    target: u32,
}

impl Found {
    const fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }
}

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER: u32 = 24;
const TYPE_HEADER: usize = 12;
const KIND_PTR: u32 = 2;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;

/// Looks for `names`; `None` if `bytes` is not BTF in this machine's byte order.
pub(crate) fn find(bytes: &[u8], names: &HashSet<String>) -> Option<Index> {
    let sections = Sections::of(bytes)?;
    let wanted = Wanted::among(sections.strings, names);
    let mut index = Index::new();
    sections.each_type(|name, found| {
        if let Some(name) = wanted.name(name) {
            index.entry(name.to_owned()).or_default().push(found);
        }
    })?;
    Some(index)
}

/// BTF that knows only those tracepoints and functions in `index` that are `wanted`, under the ids that they
/// have there; everything between them has no name. It takes a tenth of the time to make, and of the memory
/// to keep, that all of it would.
pub(crate) fn thin(index: &Index, wanted: &HashSet<String>) -> Result<Btf> {
    let found = index
        .iter()
        .filter(|(name, _)| wanted.contains(*name))
        .flat_map(|(name, found)| found.iter().map(move |found| (name.as_str(), *found)));
    let mut kept: Vec<(&str, Found)> = found
        .filter(|(_, found)| matches!(found.kind(), KIND_FUNC | KIND_TYPEDEF))
        .collect();
    kept.sort_unstable_by_key(|(_, found)| found.id);
    // aya can be given functions, which come late, but has to read tracepoints, which takes it longer.
    let read = kept
        .iter()
        .rposition(|(_, found)| found.kind() == KIND_TYPEDEF)
        .map_or(0, |last| last + 1);
    let (read, given) = kept.split_at(read);
    let bytes = encode(read).context("too many types")?;
    let mut btf = Btf::parse(&bytes, Endianness::default())?;
    let mut next = read.last().map_or(0, |(_, found)| found.id) + 1;
    for (name, found) in given {
        for _ in next..found.id {
            btf.add_type(BtfType::Unknown);
        }
        let name = btf.add_string(name);
        btf.add_type(BtfType::Func(Func::new(
            name,
            found.target,
            FuncLinkage::Static,
        )));
        next = found.id + 1;
    }
    Ok(btf)
}

/// Types as the kernel writes them, each under its id, after as many nameless pointers as that takes.
fn encode(kept: &[(&str, Found)]) -> Option<Vec<u8>> {
    let mut strings = vec![0];
    let mut types: Vec<[u32; 3]> = Vec::new();
    for (name, found) in kept {
        types.resize(found.id as usize - 1, [0, KIND_PTR << 24, 0]);
        types.push([u32::try_from(strings.len()).ok()?, found.info, found.target]);
        strings.extend(name.bytes().chain([0]));
    }
    let type_length = u32::try_from(types.len() * TYPE_HEADER).ok()?;
    let string_length = u32::try_from(strings.len()).ok()?;
    let mut out = MAGIC.to_ne_bytes().to_vec();
    out.extend([VERSION, 0]);
    let header = [HEADER, 0, type_length, type_length, string_length];
    let words = header.iter().chain(types.as_flattened());
    out.extend(words.flat_map(|word| word.to_ne_bytes()));
    out.extend(strings);
    Some(out)
}

/// The two sections of BTF.
struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Sections<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        if u16_at(bytes, 0)? != MAGIC {
            return None;
        }
        let header = u32_at(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let begin = header.checked_add(u32_at(bytes, offset)? as usize)?;
            bytes.get(begin..begin.checked_add(u32_at(bytes, length)? as usize)?)
        };
        Some(Self {
            types: section(8, 12)?,
            strings: section(16, 20)?,
        })
    }

    /// Visits every type with the place of its name; `None` if one is of an unknown kind or cut short.
    fn each_type(&self, mut visit: impl FnMut(u32, Found)) -> Option<()> {
        let mut at = 0;
        let mut id = 1;
        while at < self.types.len() {
            let name = u32_at(self.types, at)?;
            let found = Found {
                id,
                info: u32_at(self.types, at + 4)?,
                target: u32_at(self.types, at + 8)?,
            };
            at += TYPE_HEADER + trailing(found.info)?;
            visit(name, found);
            id += 1;
        }
        Some(())
    }
}

/// Where the wanted names stand in the string section. Almost all of its hundred thousand strings are
/// not wanted, and almost all of those are told by their length, first and last byte.
struct Wanted<'a> {
    names: HashMap<u32, &'a str>,
    /// A bit for each byte of the section, set where a wanted name begins.
    begins: Vec<u64>,
}

impl<'a> Wanted<'a> {
    fn among(strings: &[u8], names: &'a HashSet<String>) -> Self {
        let by_bytes: HashMap<&[u8], &str> = names
            .iter()
            .map(|name| (name.as_bytes(), name.as_str()))
            .collect();
        let mut plausible = [false; LOOKS];
        for name in by_bytes.keys() {
            plausible[look(name)] = true;
        }
        let mut found = Self {
            names: HashMap::new(),
            begins: vec![0; strings.len() / 64 + 1],
        };
        let mut offset = 0;
        for end in memchr::memchr_iter(0, strings) {
            let string = &strings[offset..end];
            if plausible[look(string)]
                && let Some(name) = by_bytes.get(string)
                && let Ok(begin) = u32::try_from(offset)
            {
                found.names.insert(begin, *name);
                found.begins[offset / 64] |= 1 << (offset % 64);
            }
            offset = end + 1;
        }
        found
    }

    /// The wanted name that begins there.
    fn name(&self, offset: u32) -> Option<&'a str> {
        let word = self.begins.get(offset as usize / 64)?;
        if word & (1 << (offset % 64)) == 0 {
            return None;
        }
        self.names.get(&offset).copied()
    }
}

/// Number of different [`look`]s, a power of two.
const LOOKS: usize = 1 << 13;

/// A number that few strings share.
fn look(string: &[u8]) -> usize {
    let ends = [string.first(), string.last()];
    let [first, last] = ends.map(|byte| byte.map_or(0, |byte| usize::from(*byte)));
    (string.len() << 8 ^ first << 5 ^ last) % LOOKS
}

/// Bytes that follow the header of a type, by its kind (`BTF_KIND_*`) and number of members.
fn trailing(info: u32) -> Option<usize> {
    let members = (info & 0xffff) as usize;
    Some(match (info >> 24) & 0x1f {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => members * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => members * 8,
        // PTR, FWD, TYPEDEF, qualifiers, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    /// BTF with an int `u8`, a struct `sock` of one member, and a typedef `sock`.
    fn small() -> Vec<u8> {
        let strings = b"\0u8\0sock\0x\0";
        let types: Vec<u32> = vec![
            1,
            1 << 24,
            1,
            8, // int u8
            4,
            (4 << 24) | 1,
            1,
            9,
            1,
            0, // struct sock { u8 x; }
            4,
            8 << 24,
            1, // typedef sock
        ];
        let type_bytes: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend([1, 0]);
        let lengths = [24, 0, type_bytes.len(), type_bytes.len(), strings.len()];
        for word in lengths {
            bytes.extend(u32::try_from(word).unwrap().to_ne_bytes());
        }
        bytes.extend(type_bytes);
        bytes.extend(strings);
        bytes
    }

    fn names(names: &[&str]) -> HashSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ids(index: &Index, name: &str) -> Vec<u32> {
        index[name].iter().map(|found| found.id).collect()
    }

    /// Six types: a typedef `drop`, and functions `connect` and `close` with gaps before them.
    fn hooks() -> Index {
        let found = |id, kind: u32| {
            vec![Found {
                id,
                info: kind << 24,
                target: 1,
            }]
        };
        Index::from([
            ("drop".to_owned(), found(2, KIND_TYPEDEF)),
            ("connect".to_owned(), found(4, KIND_FUNC)),
            ("close".to_owned(), found(6, KIND_FUNC)),
            ("sock".to_owned(), found(5, 4)),
        ])
    }

    #[test]
    fn thin_btf_keeps_ids_and_drops_the_rest() {
        let wanted = names(&["drop", "connect", "close", "sock"]);
        let btf = thin(&hooks(), &wanted).unwrap();
        let id = |name, kind| btf.id_by_type_name_kind(name, kind).ok();
        assert_eq!(id("drop", BtfKind::Typedef), Some(2));
        assert_eq!(id("connect", BtfKind::Func), Some(4));
        assert_eq!(id("close", BtfKind::Func), Some(6));
        assert_eq!(id("sock", BtfKind::Struct), None);
        let fewer = thin(&hooks(), &names(&["close"])).unwrap();
        assert_eq!(
            fewer.id_by_type_name_kind("close", BtfKind::Func).unwrap(),
            6
        );
        assert!(
            fewer
                .id_by_type_name_kind("connect", BtfKind::Func)
                .is_err()
        );
    }

    #[test]
    fn names_are_found_with_all_their_types() {
        let index = find(&small(), &names(&["sock", "u8", "missing"])).unwrap();
        assert_eq!(ids(&index, "sock"), [2, 3]);
        assert_eq!(ids(&index, "u8"), [1]);
        assert!(!index.contains_key("missing"));
    }

    #[test]
    fn damaged_input_is_refused() {
        let whole = small();
        for length in 0..whole.len() {
            assert!(
                find(&whole[..length], &names(&["sock"])).is_none(),
                "{length} bytes"
            );
        }
        let mut unknown_kind = whole;
        unknown_kind[24 + 7] = 0x1f;
        assert!(find(&unknown_kind, &names(&["sock"])).is_none());
    }
}
