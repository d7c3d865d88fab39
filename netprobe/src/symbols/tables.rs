//! Unwind tables of an ELF file (`.eh_frame`, found through `.eh_frame_hdr` or, in static programs without, an index of
//! our own): for each place in its code, where the caller's registers are. Read by gimli; the file is a stranger's.

use std::{
    cell::RefCell, collections::HashMap, fs::File, io::Cursor, os::unix::fs::FileExt, rc::Rc,
};

use gimli::{
    BaseAddresses, CallFrameInstruction, CfaRule, CieOrFde, EhFrame, EhFrameHdr, EhFrameOffset,
    EndianSlice, FrameDescriptionEntry, LittleEndian, ParsedEhFrameHdr, Pointer, Register,
    RegisterRule, UnwindContext, UnwindSection,
};
use object::{
    Object, ObjectSection, ReadCache, ReadCacheOps,
    elf::{EM_X86_64, FileHeader64},
    read::elf::{ElfFile, FileHeader},
};

use super::segments::Segments;

/// Bytes of tables that are read of one file; a browser's are 30 MiB.
const MOST_BYTES: u64 = 16 << 20;
/// Rules that are remembered of a file.
const MOST_ROWS: usize = 16_384;
/// Functions that are looked at to find out whether a file keeps frame pointers.
const PROBED_FUNCTIONS: usize = 256;
/// Functions that keep frame pointers, in percent, if the file was built that way: those written in
/// assembler need not.
const FRAMED_PERCENT: usize = 70;
/// The register that frame pointers are kept in.
const FRAME_POINTER: Register = Register(6);

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// How to get from a place in the code to its caller.
#[derive(Debug)]
pub(super) struct Row {
    /// Where the frame begins.
    pub(super) cfa: CfaRule<usize>,
    /// Where registers were saved, by their numbers in DWARF.
    pub(super) registers: Vec<(u16, RegisterRule<usize>)>,
    /// The caller was interrupted by a signal, and did not call.
    pub(super) is_signal: bool,
}

impl Row {
    /// Whether the function has set up a frame pointer of its own there.
    pub(super) fn is_framed(&self) -> bool {
        matches!(self.cfa, CfaRule::RegisterAndOffset { register, .. } if register == FRAME_POINTER)
    }
}

/// Why a file has no tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTables {
    /// It was made without: its compiler keeps frame pointers, if it is to be followed at all.
    Absent,
    /// They are damaged, too large, or of another machine.
    Refused,
}

fn refused(_why: object::Error) -> NoTables {
    NoTables::Refused
}

/// Where the functions of a file are told of.
#[derive(Debug, PartialEq)]
enum Index {
    /// `.eh_frame_hdr`.
    Header(Vec<u8>),
    /// Where functions begin, in order, and where in `.eh_frame` they are.
    Own(Vec<(u64, usize)>),
}

impl Index {
    /// That of a file without `.eh_frame_hdr`.
    fn of(frames: &EhFrame<Bytes<'_>>, bases: &BaseAddresses) -> Option<Self> {
        let mut places = Vec::new();
        let mut entries = frames.entries(bases);
        while let Some(entry) = entries.next().ok()? {
            let CieOrFde::Fde(fde) = entry else {
                continue;
            };
            let fde = fde.parse(EhFrame::cie_from_offset).ok()?;
            places.push((fde.initial_address(), fde.offset()));
        }
        places.sort_unstable();
        Some(Self::Own(places))
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Header(header) => header.len(),
            Self::Own(places) => size_of_val(&**places),
        }
    }
}

/// The tables of a file.
#[derive(Debug)]
pub(super) struct Tables {
    segments: Segments,
    index: Index,
    frames: Vec<u8>,
    bases: BaseAddresses,
    keeps_frame_pointers: bool,
    has_go: bool,
    rows: RefCell<HashMap<u64, Option<Rc<Row>>>>,
}

impl PartialEq for Tables {
    /// Whether they say the same, whatever was looked up in them.
    fn eq(&self, other: &Self) -> bool {
        self.has_go == other.has_go
            && self.bases == other.bases
            && self.segments == other.segments
            && self.index == other.index
            && self.frames == other.frames
    }
}

impl Tables {
    /// Reads those of a file, if they are not more than `room` bytes.
    pub(super) fn read(file: File, room: u64) -> Result<Self, NoTables> {
        Self::parse(&ReadCache::new(file), room)
    }

    /// Reads those of the code that the kernel gives to every process, from our own.
    pub(super) fn of_vdso() -> Option<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let size = u64::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        let memory = File::open("/proc/self/mem").ok()?;
        let mut image = vec![0; usize::try_from(size).ok()?];
        memory.read_exact_at(&mut image, start).ok()?;
        Self::parse(&ReadCache::new(Cursor::new(image)), MOST_BYTES).ok()
    }

    pub(super) fn parse<R: ReadCacheOps>(file: &ReadCache<R>, room: u64) -> Result<Self, NoTables> {
        let little = object::LittleEndian;
        let elf: ElfFile<'_, FileHeader64<object::LittleEndian>, _> =
            ElfFile::parse(file).map_err(refused)?;
        if elf.elf_header().e_machine(little) != EM_X86_64 {
            return Err(NoTables::Refused);
        }
        let frames = elf.section_by_name(".eh_frame").ok_or(NoTables::Absent)?;
        let header = elf.section_by_name(".eh_frame_hdr");
        let size = header.as_ref().map_or(0, ObjectSection::size);
        if size.saturating_add(frames.size()) > MOST_BYTES.min(room) {
            return Err(NoTables::Refused);
        }
        let mut bases = BaseAddresses::default().set_eh_frame(frames.address());
        let frames = frames.data().map_err(refused)?.to_vec();
        let index = if let Some(header) = header {
            bases = bases.set_eh_frame_hdr(header.address());
            Index::Header(header.data().map_err(refused)?.to_vec())
        } else {
            Index::of(&EhFrame::new(&frames, LittleEndian), &bases).ok_or(NoTables::Refused)?
        };
        let mut tables = Self {
            segments: Segments::of(&elf),
            index,
            frames,
            bases,
            keeps_frame_pointers: false,
            has_go: elf.section_by_name(".gopclntab").is_some(),
            rows: RefCell::default(),
        };
        tables.keeps_frame_pointers = tables.probe_frame_pointers().ok_or(NoTables::Refused)?;
        Ok(tables)
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> u64 {
        (self.index.bytes() + self.frames.len()) as u64
    }

    /// Whether the functions of the file keep frame pointers, by a sample of them.
    pub(super) const fn keeps_frame_pointers(&self) -> bool {
        self.keeps_frame_pointers
    }

    /// Whether Go has compiled code of the file, which the tables leave out.
    pub(super) const fn has_go(&self) -> bool {
        self.has_go
    }

    /// Whether code that the tables leave out keeps frame pointers: Go's always does.
    pub(super) const fn has_framed_code(&self) -> bool {
        self.keeps_frame_pointers || self.has_go
    }

    /// The expressions of rules are in here.
    pub(super) fn frames(&self) -> EhFrame<Bytes<'_>> {
        EhFrame::new(&self.frames, LittleEndian)
    }

    /// What to do at a place of the file; `None` if the tables do not say.
    pub(super) fn row(&self, offset: u64) -> Option<Rc<Row>> {
        if let Some(known) = self.rows.borrow().get(&offset) {
            return known.clone();
        }
        let row = self.find(offset).map(Rc::new);
        let mut rows = self.rows.borrow_mut();
        if rows.len() >= MOST_ROWS {
            rows.clear();
        }
        rows.insert(offset, row.clone());
        row
    }

    fn find(&self, offset: u64) -> Option<Row> {
        let address = self.segments.address(offset)?;
        let frames = self.frames();
        let fde = self.function(&frames, address)?;
        let is_signal = fde.is_signal_trampoline();
        let mut context = UnwindContext::new();
        let row = fde
            .unwind_info_for_address(&frames, &self.bases, &mut context, address)
            .ok()?;
        let registers = row.registers();
        Some(Row {
            cfa: row.cfa().clone(),
            registers: registers
                .map(|(register, rule)| (register.0, rule.clone()))
                .collect(),
            is_signal,
        })
    }

    /// The function that has an address.
    fn function<'a>(
        &'a self,
        frames: &EhFrame<Bytes<'a>>,
        address: u64,
    ) -> Option<FrameDescriptionEntry<Bytes<'a>>> {
        match &self.index {
            Index::Header(header) => {
                let header = parsed(header, &self.bases)?;
                let table = header.table()?;
                table
                    .fde_for_address(frames, &self.bases, address, EhFrame::cie_from_offset)
                    .ok()
            }
            Index::Own(places) => {
                let after = places.partition_point(|(begin, _)| *begin <= address);
                let (_, offset) = places.get(after.checked_sub(1)?)?;
                let offset = EhFrameOffset(*offset);
                frames
                    .fde_from_offset(&self.bases, offset, EhFrame::cie_from_offset)
                    .ok()
                    .filter(|fde| fde.contains(address))
            }
        }
    }

    /// Where functions here and there are told of; `None` if the tables are damaged.
    fn sample(&self) -> Option<Vec<EhFrameOffset>> {
        let header = match &self.index {
            Index::Header(header) => header,
            Index::Own(places) => {
                let some = places.iter().step_by(places.len() / PROBED_FUNCTIONS + 1);
                return Some(some.map(|(_, offset)| EhFrameOffset(*offset)).collect());
            }
        };
        let many = header.len() / 8;
        let header = parsed(header, &self.bases)?;
        let table = header.table()?;
        let Pointer::Direct(begin) = header.eh_frame_ptr() else {
            return None;
        };
        let mut entries = table.iter(&self.bases);
        let mut sample = Vec::new();
        while let Ok(Some((_begin, at))) = entries.nth(many / PROBED_FUNCTIONS)
            && let Pointer::Direct(entry) = at
        {
            if entry < begin {
                return None;
            }
            sample.push(table.pointer_to_offset(at).ok()?);
        }
        Some(sample)
    }

    /// Looks at functions here and there; `None` if the tables are damaged.
    fn probe_frame_pointers(&self) -> Option<bool> {
        let frames = self.frames();
        let sample = self.sample()?;
        let mut keeping = 0;
        for offset in &sample {
            let fde = frames
                .fde_from_offset(&self.bases, *offset, EhFrame::cie_from_offset)
                .ok()?;
            let mut instructions = fde.instructions(&frames, &self.bases);
            while let Ok(Some(instruction)) = instructions.next() {
                if let CallFrameInstruction::DefCfaRegister { register }
                | CallFrameInstruction::DefCfa { register, .. } = instruction
                    && register == FRAME_POINTER
                {
                    keeping += 1;
                    break;
                }
            }
        }
        Some(keeping * 100 >= sample.len() * FRAMED_PERCENT)
    }
}

fn parsed<'a>(header: &'a [u8], bases: &BaseAddresses) -> Option<ParsedEhFrameHdr<Bytes<'a>>> {
    EhFrameHdr::new(header, LittleEndian).parse(bases, 8).ok()
}
