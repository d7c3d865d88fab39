//! Finds types by name in raw BTF, all wanted names in one pass.
//!
//! A kernel has some 100,000 types; asking for each name by itself would take longer than
//! everything else at start. Layout: `include/uapi/linux/btf.h`.

use std::collections::HashMap;

/// Ids of the types with each wanted name.
pub type Index = HashMap<&'static str, Vec<u32>>;

const MAGIC: u16 = 0xeb9f;
const TYPE_HEADER: usize = 12;

/// Looks for `names`; `None` if `bytes` is not BTF in this machine's byte order.
pub fn find(bytes: &[u8], names: &[&'static str]) -> Option<Index> {
    if u16_at(bytes, 0)? != MAGIC {
        return None;
    }
    let header = u32_at(bytes, 4)? as usize;
    let section = |offset: usize, length: usize| -> Option<&[u8]> {
        let begin = header.checked_add(u32_at(bytes, offset)? as usize)?;
        bytes.get(begin..begin.checked_add(u32_at(bytes, length)? as usize)?)
    };
    let types = section(8, 12)?;
    let strings = section(16, 20)?;
    let wanted = string_offsets(strings, names);

    let mut index = Index::new();
    let mut at = 0;
    let mut id = 1;
    while at < types.len() {
        let name = u32_at(types, at)?;
        let info = u32_at(types, at + 4)?;
        if let Some(name) = wanted.get(&name) {
            index.entry(name).or_default().push(id);
        }
        at += TYPE_HEADER + trailing(info)?;
        id += 1;
    }
    Some(index)
}

/// Where each name stands in the string section, whose strings end with a zero byte.
fn string_offsets(strings: &[u8], names: &[&'static str]) -> HashMap<u32, &'static str> {
    let wanted: HashMap<&[u8], &'static str> =
        names.iter().map(|name| (name.as_bytes(), *name)).collect();
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
        1 | 14 | 17 => 4,                // INT, VAR, DECL_TAG
        3 => 12,                         // ARRAY
        4 | 5 | 15 | 19 => members * 12, // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => members * 8,           // ENUM, FUNC_PROTO
        2 | 7..=12 | 16 | 18 => 0,       // PTR, FWD, TYPEDEF, qualifiers, FUNC, FLOAT, TYPE_TAG
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

    #[test]
    fn names_are_found_with_all_their_types() {
        let index = find(&small(), &["sock", "u8", "missing"]).unwrap();
        assert_eq!(index["sock"], [2, 3]);
        assert_eq!(index["u8"], [1]);
        assert!(!index.contains_key("missing"));
    }

    #[test]
    fn damaged_input_is_refused() {
        let whole = small();
        for length in 0..whole.len() {
            assert!(
                find(&whole[..length], &["sock"]).is_none(),
                "{length} bytes"
            );
        }
        let mut unknown_kind = whole;
        unknown_kind[24 + 7] = 0x1f;
        assert!(find(&unknown_kind, &["sock"]).is_none());
    }
}
