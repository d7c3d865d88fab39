//! The object without the programs that a run does not use: aya reads, copies and relocates whatever it finds, and
//! a run uses a few of fifty programs.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
};

use anyhow::{Context, Result, anyhow};
use flate2::read::ZlibDecoder;
use object::{
    Endianness, SectionIndex,
    elf::{
        FileHeader64, SHF_EXECINSTR, SHT_NULL, SHT_REL, SHT_SYMTAB, STT_FUNC, STT_NOTYPE,
        STV_HIDDEN,
    },
    read::elf::{FileHeader, SectionHeader, Sym},
};

#[cfg(not(target_arch = "x86_64"))]
compile_error!(
    "netprobe runs on x86-64 only: its eBPF programs read the arguments of probed functions, and the registers of threads, \
     where that processor has them"
);

/// The programs in `prebuilt/`, as the build script has packed them.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/netprobe.bpf.o.z"));

type Elf = FileHeader64<Endianness>;

/// Sizes of `Elf64_Sym` and `Elf64_Shdr`, and where their type is.
const SYMBOL: usize = 24;
const SYMBOL_INFO: usize = 4;
const SECTION: usize = 64;
const SECTION_TYPE: usize = 4;

/// The object as it was built.
pub(super) fn unpack() -> Result<Vec<u8>> {
    // More than it needs: what is not written to takes no memory, but what grows leaves holes behind.
    let mut object = Vec::with_capacity(PACKED.len() * 8);
    let unpacked = ZlibDecoder::new(PACKED).read_to_end(&mut object);
    unpacked.context("unpack the eBPF object")?;
    Ok(object)
}

/// Hides the programs of the eBPF `object` that are not `wanted`, by name.
pub(super) fn keep_only(object: &mut [u8], wanted: &HashSet<&str>) -> Result<()> {
    for (at, byte) in hidden(object, wanted).context("read the eBPF object")? {
        if let Some(place) = object.get_mut(at) {
            *place = byte;
        }
    }
    Ok(())
}

/// The maps of stacks, and where the size of their values is in a `bpf_map_def`, as of 32 bits.
const STACK_MAPS: [&[u8]; 2] = [b"STACKS", b"MORE_STACKS"];
const VALUE_SIZE: usize = 8;
/// Bytes of an address in them.
const ADDRESS: u32 = 8;

/// Has the stack maps of the eBPF `object` keep so many frames: the kernel refuses deeper ones than it takes itself.
pub(super) fn keep_frames(object: &mut [u8], depth: u32) -> Result<()> {
    let places = stack_maps(object).context("read the eBPF object")?;
    for map in places {
        let at = map + VALUE_SIZE;
        let size = object.get_mut(at..at + size_of::<u32>());
        let size = size.ok_or_else(|| anyhow!("the eBPF object is cut"))?;
        size.copy_from_slice(&depth.saturating_mul(ADDRESS).to_ne_bytes());
    }
    Ok(())
}

/// Where the definitions of the stack maps are.
fn stack_maps(object: &[u8]) -> Result<Vec<usize>> {
    let header = Elf::parse(object)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, object)?;
    let symbols = sections.symbols(endian, object, SHT_SYMTAB)?;
    let mut places = Vec::new();
    for (index, symbol) in symbols.enumerate() {
        if !STACK_MAPS.contains(&symbols.symbol_name(endian, symbol)?) {
            continue;
        }
        if let Some(section) = symbols.symbol_section(endian, symbol, index)? {
            let begin = sections.section(section)?.sh_offset(endian);
            places.push(usize::try_from(begin + symbol.st_value(endian))?);
        }
    }
    Ok(places)
}

/// The kinds of maps whose room is there at once, entry by entry: `BPF_MAP_TYPE_HASH`, the same per CPU, and the one that evicts.
const HASHES: [u32; 3] = [1, 5, 9];

/// Names of the hash maps of the eBPF `object` that no program in it refers to.
pub(super) fn unused_maps(object: &[u8]) -> Result<Vec<&str>> {
    let header = Elf::parse(object)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, object)?;
    let symbols = sections.symbols(endian, object, SHT_SYMTAB)?;
    let mut used = HashSet::new();
    for section in sections.iter() {
        let Some((places, _symbols)) = section.rel(endian, object)? else {
            continue;
        };
        // Also the types of maps are relocated.
        let of = sections.section(SectionIndex(section.sh_info(endian) as usize))?;
        if of.sh_flags(endian) & u64::from(SHF_EXECINSTR) != 0 {
            used.extend(places.iter().map(|place| place.r_sym(endian)));
        }
    }
    let mut unused = Vec::new();
    for (index, symbol) in symbols.enumerate() {
        let Some(section) = symbols.symbol_section(endian, symbol, index)? else {
            continue;
        };
        let section = sections.section(section)?;
        let is_map = sections.section_name(endian, section)? == b"maps";
        if !is_map || symbol.st_name(endian) == 0 || used.contains(&u32::try_from(index.0)?) {
            continue;
        }
        let at = usize::try_from(section.sh_offset(endian) + symbol.st_value(endian))?;
        let kind = object.get(at..at + size_of::<u32>()).unwrap_or_default();
        if kind
            .try_into()
            .is_ok_and(|kind| HASHES.contains(&u32::from_ne_bytes(kind)))
        {
            unused.push(str::from_utf8(symbols.symbol_name(endian, symbol)?)?);
        }
    }
    Ok(unused)
}

/// The bytes to change: what was a function becomes a label, and a section without functions nothing.
fn hidden(object: &[u8], wanted: &HashSet<&str>) -> Result<Vec<(usize, u8)>> {
    let header = Elf::parse(object)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, object)?;
    let symbols = sections.symbols(endian, object, SHT_SYMTAB)?;
    let table = sections.section(symbols.section())?.sh_offset(endian);
    let table = usize::try_from(table)?;
    let mut changes = Vec::new();
    // Whether a section holds anything that is wanted.
    let mut is_used: HashMap<usize, bool> = HashMap::new();
    for (index, symbol) in symbols.enumerate() {
        let Some(section) = symbols.symbol_section(endian, symbol, index)? else {
            continue;
        };
        if symbol.st_type() != STT_FUNC {
            continue;
        }
        let name = symbols.symbol_name(endian, symbol)?;
        // What the compiler adds is hidden, as memcpy.
        let is_wanted = symbol.st_visibility() == STV_HIDDEN
            || str::from_utf8(name).is_ok_and(|name| wanted.contains(name));
        *is_used.entry(section.0).or_default() |= is_wanted;
        if !is_wanted {
            let info = (symbol.st_info() & 0xf0) | STT_NOTYPE;
            changes.push((table + index.0 * SYMBOL + SYMBOL_INFO, info));
        }
    }
    let headers = usize::try_from(header.e_shoff(endian))?;
    for (index, section) in sections.enumerate() {
        let of = match section.sh_type(endian) {
            SHT_REL => section.sh_info(endian) as usize,
            _ if section.sh_flags(endian) & u64::from(SHF_EXECINSTR) != 0 => index.0,
            _ => continue,
        };
        if is_used.get(&of) == Some(&false) {
            let place = headers + index.0 * SECTION + SECTION_TYPE;
            let kind = SHT_NULL.to_ne_bytes();
            changes.extend((place..).zip(kind));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSymbol, SymbolKind};

    use super::*;

    fn programs(object: &[u8]) -> Vec<String> {
        let file = object::File::parse(object).unwrap();
        let functions = file.symbols().filter(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.scope() != object::SymbolScope::Linkage
        });
        functions
            .map(|symbol| symbol.name().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn only_what_is_wanted_stays_a_program() {
        let mut object = unpack().unwrap();
        assert!(programs(&object).len() > 40);
        let wanted = HashSet::from(["drops", "connects_found_k"]);
        keep_only(&mut object, &wanted).unwrap();
        let mut left = programs(&object);
        left.sort();
        assert_eq!(left, ["connects_found_k", "drops"]);
    }

    #[test]
    fn maps_that_no_program_refers_to_are_told() {
        let mut object = unpack().unwrap();
        assert_eq!(unused_maps(&object).unwrap(), [""; 0]);
        keep_only(&mut object, &HashSet::from(["connects_state"])).unwrap();
        let unused = unused_maps(&object).unwrap();
        for (map, is_unused) in [
            ("CONNECTS", false),
            ("COUNTS", false),
            ("WANTED", true),
            ("ACCEPTED", true),
        ] {
            assert_eq!(unused.contains(&map), is_unused, "{map}");
        }
        // An array, of which user space reads what it wants.
        assert!(!unused.contains(&"SYN_CHECKS"));
    }

    #[test]
    fn both_maps_of_stacks_keep_as_many_frames_as_the_kernel_takes() {
        let mut object = unpack().unwrap();
        let sizes = |object: &[u8]| -> Vec<u32> {
            let places = stack_maps(object).unwrap().into_iter();
            let sizes = places.map(|at| object[at + VALUE_SIZE..][..4].try_into().unwrap());
            sizes.map(u32::from_ne_bytes).collect()
        };
        assert_eq!(sizes(&object), [127 * 8; 2]);
        keep_frames(&mut object, 16).unwrap();
        assert_eq!(sizes(&object), [16 * 8; 2]);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(keep_only(&mut [0; 100], &HashSet::new()).is_err());
        assert!(keep_frames(&mut [0; 100], 16).is_err());
    }
}
