//! Names of the functions of a Go program and how deep their frames are, from the table that its runtime keeps
//! (`.gopclntab`, since Go 1.18): it is there also where the symbols were stripped, as of most released servers. The file
//! is a stranger's: nothing is believed, and little is read.

use std::{cell::RefCell, collections::HashMap, fs::File, os::unix::fs::FileExt, path::Path};

use object::{LittleEndian, Object, ObjectSection, ReadCache, read::elf::ElfFile64};

use super::segments::Segments;

/// Names of the section, with position-independent code too.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// What the table begins with, of Go 1.18 and of Go 1.20, and where the flags of a function are in what is known of it: the
/// rest of the layout is the same.
const LAYOUTS: [(u32, u64); 2] = [(0xffff_fff0, 37), (0xffff_fff1, 41)];
/// Where the header has the size of a pointer, and where its words begin.
const POINTER_SIZE: u64 = 7;
const WORDS: u64 = 8;
/// Bytes of an entry of the functions: where the function begins, and where more about it is.
const ENTRY: u64 = 8;
/// In what is known of a function: where its name is, and the table of its depths.
const NAME_IN_FUNCTION: u64 = 4;
const DEPTHS_IN_FUNCTION: u64 = 16;
/// Bytes of a name that are read at most.
const NAME_BYTES: usize = 2048;
/// Bytes of the depths of a function that are read at most: some two for each place where it changes.
const DEPTHS_BYTES: usize = 2048;
/// Flags: nothing called the function (`TOPFRAME`), or it changes stacks (`SPWRITE`).
const NO_CALLER: u8 = 1 | 2;
/// Places that are remembered.
const MOST_FRAMES: usize = 16_384;

/// The table of a file.
#[derive(Debug)]
pub(super) struct GoTable {
    file: File,
    segments: Segments,
    /// Where the table is in the file, and its size.
    begin: u64,
    size: u64,
    /// The address of the first function.
    text: u64,
    functions: u64,
    /// Where in the table the names are, the depths, and the functions.
    names_at: u64,
    depths_at: u64,
    functions_at: u64,
    flags_in_function: u64,
    frames: RefCell<HashMap<u64, Option<GoFrame>>>,
}

/// The frame of a function while it is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GoFrame {
    /// How many bytes above the stack pointer the return address is.
    pub(super) depth: u64,
    /// It returns to its caller on the stack that it is on.
    pub(super) has_caller: bool,
    /// What it returns to has not called it.
    pub(super) interrupts: bool,
}

impl GoTable {
    /// That of the file at `path`, if it is a Go program of a known format.
    pub(super) fn find(path: &Path) -> Option<Self> {
        let cache = ReadCache::new(File::open(path).ok()?);
        let elf = ElfFile64::<LittleEndian, _>::parse(&cache).ok()?;
        let mut sections = SECTIONS.into_iter();
        let section = sections.find_map(|name| elf.section_by_name(name))?;
        let (begin, size) = section.file_range()?;
        let text = elf.section_by_name(".text")?.address();
        // Where there is C too, its code comes first.
        let is_pure = elf.section_by_name(".eh_frame").is_none();
        let table = Self {
            file: File::open(path).ok()?,
            segments: Segments::of(&elf),
            begin,
            size,
            text: 0,
            functions: 0,
            names_at: 0,
            depths_at: 0,
            functions_at: 0,
            flags_in_function: 0,
            frames: RefCell::default(),
        };
        table.with_header(is_pure.then_some(text))
    }

    /// With what the header says; `text` is where its functions begin if it does not say that.
    fn with_header(self, text: Option<u64>) -> Option<Self> {
        let mut pointer_size = [0];
        self.read(POINTER_SIZE, &mut pointer_size)?;
        let magic = self.word32(0)?;
        let mut layouts = LAYOUTS.into_iter();
        let (_, flags_in_function) = layouts.find(|(known, _)| *known == magic)?;
        if pointer_size != [8] {
            return None;
        }
        let word = |number: u64| {
            let mut bytes = [0; 8];
            self.read(WORDS + number * 8, &mut bytes)?;
            Some(u64::from_le_bytes(bytes))
        };
        // Functions, files, begin of the text, names, units, files, values by place, functions.
        let (functions, begin) = (word(0)?, word(2)?);
        let (names_at, depths_at, functions_at) = (word(3)?, word(6)?, word(7)?);
        let text = if begin == 0 { text? } else { begin };
        Some(Self {
            text,
            functions,
            names_at,
            depths_at,
            functions_at,
            flags_in_function,
            ..self
        })
    }

    /// The function at an offset in the file.
    pub(super) fn name(&self, offset: u64) -> Option<String> {
        let (_, _, about) = self.about(offset)?;
        self.name_of(about)
    }

    fn name_of(&self, about: u64) -> Option<String> {
        let name = self.word32(about.checked_add(NAME_IN_FUNCTION)?)?;
        self.text_at(self.names_at.checked_add(u64::from(name))?)
    }

    /// The frame that a function has while it is at an offset in the file.
    pub(super) fn frame(&self, offset: u64) -> Option<GoFrame> {
        let mut known = self.frames.borrow_mut();
        if known.len() >= MOST_FRAMES {
            known.clear();
        }
        *known
            .entry(offset)
            .or_insert_with(|| self.find_frame(offset))
    }

    fn find_frame(&self, offset: u64) -> Option<GoFrame> {
        let (place, begin, about) = self.about(offset)?;
        let mut flags = [0];
        self.read(about.checked_add(self.flags_in_function)?, &mut flags)?;
        Some(GoFrame {
            depth: self.depth(about, place.checked_sub(begin)?)?,
            has_caller: flags[0] & NO_CALLER == 0,
            interrupts: self.name_of(about).is_some_and(|name| interrupts(&name)),
        })
    }

    /// How many bytes above the stack pointer the return address is, so many bytes into a function.
    fn depth(&self, about: u64, into: u32) -> Option<u64> {
        let depths = self.word32(about.checked_add(DEPTHS_IN_FUNCTION)?)?;
        let at = self.depths_at.checked_add(u64::from(depths))?;
        let room = usize::try_from(self.size.checked_sub(at)?).ok()?;
        let mut bytes = vec![0; room.min(DEPTHS_BYTES)];
        self.read(at, &mut bytes)?;
        depth_at(&bytes, into)
    }

    /// Of an offset in the file: where in the text it is, where its function begins there, and where more is known of that.
    fn about(&self, offset: u64) -> Option<(u32, u32, u64)> {
        let into_text = self.segments.address(offset)?.checked_sub(self.text)?;
        let place = u32::try_from(into_text).ok()?;
        let entry = self.entry(self.function_at(place)?)?;
        let about = self.word32(entry.checked_add(4)?)?;
        let about = self.functions_at.checked_add(u64::from(about))?;
        Some((place, self.word32(entry)?, about))
    }

    /// The last function that begins at a place of the text or before.
    fn function_at(&self, place: u32) -> Option<u64> {
        // After the last one stands where it ends.
        if place >= self.word32(self.entry(self.functions)?)? {
            return None;
        }
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.word32(self.entry(middle)?)? <= place {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }

    /// Where the entry of a function is.
    fn entry(&self, number: u64) -> Option<u64> {
        number.checked_mul(ENTRY)?.checked_add(self.functions_at)
    }

    fn text_at(&self, at: u64) -> Option<String> {
        let room = usize::try_from(self.size.checked_sub(at)?).ok()?;
        let mut bytes = vec![0; room.min(NAME_BYTES)];
        self.read(at, &mut bytes)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        (end > 0).then(|| String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn word32(&self, at: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Option<()> {
        let end = at.checked_add(bytes.len() as u64)?;
        if end > self.size {
            return None;
        }
        let place = self.begin.checked_add(at)?;
        self.file.read_exact_at(bytes, place).ok()
    }
}

/// Whether Go lets a function be called where the program does not call.
pub fn interrupts(function: &str) -> bool {
    let function = function.strip_suffix(".abi0").unwrap_or(function);
    matches!(function, "runtime.asyncPreempt" | "runtime.sigpanic")
}

/// The depth so many bytes into a function, from a list of pairs: by how much the depth changes (from -1, and as
/// zigzag), and for how many bytes of code it stays so, each in seven bits to a byte. A change of 0 is the end.
fn depth_at(list: &[u8], into: u32) -> Option<u64> {
    let mut bytes = list.iter();
    let mut number = || {
        let mut number = 0;
        for shift in (0..32).step_by(7) {
            let byte = *bytes.next()?;
            number |= u32::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    };
    let (mut depth, mut end) = (-1_i32, 0_u32);
    while let Some(change) = number() {
        if change == 0 && end > 0 {
            return None;
        }
        let sign = (change & 1).cast_signed().wrapping_neg();
        depth = depth.checked_add((change >> 1).cast_signed() ^ sign)?;
        end = end.checked_add(number()?)?;
        if into < end {
            return u64::try_from(depth).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, process::Command};

    const PROGRAM: &str = "package main\n//go:noinline\nfunc leaf(x int) int { return x + 1 }\nfunc main() { \
        println(leaf(1)) }\n";

    /// Builds the program with and without symbols; false if there is no Go.
    fn build(folder: &Path) -> bool {
        fs::write(folder.join("leaf.go"), PROGRAM).unwrap();
        let build = |output: &str, flags: &str| {
            let mut go = Command::new("go");
            go.args(["build", "-ldflags", flags, "-o", output, "leaf.go"]);
            let home = folder.join("cache");
            go.current_dir(folder).env("GOCACHE", home);
            go.status().is_ok_and(|status| status.success())
        };
        build("whole", "") && build("stripped", "-s -w")
    }

    #[test]
    fn functions_of_a_stripped_program_have_their_names() {
        let folder = tempfile::tempdir().unwrap();
        if !build(folder.path()) {
            println!("SKIP no Go");
            return;
        }
        let bytes = fs::read(folder.path().join("whole")).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let names = GoTable::find(&folder.path().join("stripped")).unwrap();
        for function in ["main.leaf", "main.main", "runtime.goexit"] {
            let mut symbols = elf.symbols();
            let symbol = symbols.find(|symbol| {
                let name = object::ObjectSymbol::name(symbol).unwrap();
                name.trim_end_matches(".abi0") == function
            });
            let address = object::ObjectSymbol::address(&symbol.unwrap());
            let offset = names.segments.offset(address).unwrap();
            assert_eq!(names.name(offset).as_deref(), Some(function));
            assert_eq!(names.name(offset + 1).as_deref(), Some(function));
        }
        assert_eq!(names.name(u64::MAX), None);
    }

    #[test]
    fn a_damaged_table_has_no_names_and_does_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        if !build(folder.path()) {
            println!("SKIP no Go");
            return;
        }
        let path = folder.path().join("stripped");
        let whole = GoTable::find(&path).unwrap();
        let (begin, text) = (usize::try_from(whole.begin).unwrap(), whole.text);
        let bytes = fs::read(&path).unwrap();
        let place = whole.segments.offset(text + 64).unwrap();
        for word in [0, 3, 7] {
            for value in [u64::MAX, 1 << 40, whole.size] {
                let mut damaged = bytes.clone();
                damaged[begin + 8 + word * 8..][..8].copy_from_slice(&value.to_le_bytes());
                fs::write(&path, damaged).unwrap();
                assert_eq!(GoTable::find(&path).unwrap().name(place), None);
            }
        }
    }

    #[test]
    fn depths_are_those_of_places_in_a_function() {
        // 0 for 4 bytes, 24 for 300 more, 0 for one more.
        let list = [2, 4, 48, 0xac, 2, 47, 1, 0];
        for (into, depth) in [
            (0, Some(0)),
            (3, Some(0)),
            (4, Some(24)),
            (303, Some(24)),
            (304, Some(0)),
            (305, None),
        ] {
            assert_eq!(depth_at(&list, into), depth, "{into}");
        }
        for damaged in [
            &[][..],
            &[0xff; 12],
            &[2],
            &[1, 9, 0],
            &[2, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(depth_at(damaged, 0), None);
        }
    }

    #[test]
    fn what_is_not_of_go_has_no_table() {
        assert!(GoTable::find(Path::new("/proc/self/exe")).is_none());
        assert!(GoTable::find(Path::new("/etc/passwd")).is_none());
    }
}
