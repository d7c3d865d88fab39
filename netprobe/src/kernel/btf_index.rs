//! Finds types by name in raw BTF, all wanted names in one pass.
//!
//! A kernel has some 100,000 types; asking for each name by itself would take longer than
//! everything else at start. Layout: `include/uapi/linux/btf.h`.

use std::collections::{HashMap, HashSet};

/// Ids of the types with each wanted name.
pub type Index = HashMap<String, Vec<u32>>;

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const TYPE_HEADER: usize = 12;
const KIND_PTR: u32 = 2;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;

/// Looks for `names`; `None` if `bytes` is not BTF in this machine's byte order.
pub(super) fn find(bytes: &[u8], names: &HashSet<String>) -> Option<Index> {
    let sections = Sections::of(bytes)?;
    let wanted = string_offsets(sections.strings, names);
    let mut index = Index::new();
    sections.each_type(|id, header| {
        if let Some(name) = wanted.get(&header.name) {
            index.entry((*name).to_owned()).or_default().push(id);
        }
    })?;
    Some(index)
}

/// BTF that knows only the tracepoints and functions in `index`, under the ids that they have in
/// `bytes`; everything else is a nameless pointer. It takes a tenth of the time to read, and of
/// the memory to keep.
pub(super) fn thin(bytes: &[u8], index: &Index) -> Option<Vec<u8>> {
    let sections = Sections::of(bytes)?;
    let kept: HashMap<u32, &str> = index
        .iter()
        .flat_map(|(name, ids)| ids.iter().map(move |id| (*id, name.as_str())))
        .collect();
    let mut strings = vec![0];
    let mut types = Vec::with_capacity(sections.types.len() / 2);
    sections.each_type(|id, header| {
        let kind = header.kind();
        let name = kept
            .get(&id)
            .filter(|_| kind == KIND_FUNC || kind == KIND_TYPEDEF);
        let (offset, info, target) = match name {
            Some(name) => {
                let offset = u32::try_from(strings.len()).unwrap_or(0);
                strings.extend(name.bytes().chain([0]));
                (offset, header.info, header.target)
            }
            None => (0, KIND_PTR << 24, 0),
        };
        for word in [offset, info, target] {
            types.extend(word.to_ne_bytes());
        }
    })?;
    let (type_length, string_length) = (
        u32::try_from(types.len()).ok()?,
        u32::try_from(strings.len()).ok()?,
    );
    let mut out = bytes.get(..4)?.to_vec();
    for word in [
        u32::try_from(HEADER).ok()?,
        0,
        type_length,
        type_length,
        string_length,
    ] {
        out.extend(word.to_ne_bytes());
    }
    out.extend(types);
    out.extend(strings);
    Some(out)
}

/// The two sections of BTF.
struct Sections<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

/// `struct btf_type`
struct TypeHeader {
    name: u32,
    info: u32,
    target: u32,
}

impl TypeHeader {
    const fn kind(&self) -> u32 {
        (self.info >> 24) & 0x1f
    }
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

    /// Visits every type with its id; `None` if one is of an unknown kind or cut short.
    fn each_type(&self, mut visit: impl FnMut(u32, TypeHeader)) -> Option<()> {
        let mut at = 0;
        let mut id = 1;
        while at < self.types.len() {
            let header = TypeHeader {
                name: u32_at(self.types, at)?,
                info: u32_at(self.types, at + 4)?,
                target: u32_at(self.types, at + 8)?,
            };
            at += TYPE_HEADER + trailing(header.info)?;
            visit(id, header);
            id += 1;
        }
        Some(())
    }
}

/// Where each name stands in the string section, whose strings end with a zero byte.
fn string_offsets<'a>(strings: &[u8], names: &'a HashSet<String>) -> HashMap<u32, &'a str> {
    let wanted: HashMap<&[u8], &str> = names
        .iter()
        .map(|name| (name.as_bytes(), name.as_str()))
        .collect();
    let mut found = HashMap::new();
    let mut offset = 0;
    for string in strings.split(|byte| *byte == 0) {
        if let Some(name) = wanted.get(string)
            && let Ok(offset) = u32::try_from(offset)
        {
            found.insert(offset, *name);
        }
        offset += string.len() + 1;
    }
    found
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

    #[test]
    fn thin_btf_keeps_ids_and_drops_the_rest() {
        let index = find(&small(), &names(&["sock", "u8"])).unwrap();
        let thin = thin(&small(), &index).unwrap();
        let again = find(&thin, &names(&["sock", "u8"])).unwrap();
        // The struct is gone, the typedef stays where it was.
        assert_eq!(again["sock"], [3]);
        assert!(!again.contains_key("u8"));
    }

    #[test]
    fn names_are_found_with_all_their_types() {
        let index = find(&small(), &names(&["sock", "u8", "missing"])).unwrap();
        assert_eq!(index["sock"], [2, 3]);
        assert_eq!(index["u8"], [1]);
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
