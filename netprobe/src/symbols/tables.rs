//! Unwind tables of an ELF file (`.eh_frame`, found through `.eh_frame_hdr`): for each place in its
//! code, where the caller's registers are. Read by gimli; the file is a stranger's.

use std::{
    cell::RefCell, collections::HashMap, fs::File, io::Cursor, os::unix::fs::FileExt, rc::Rc,
};

use gimli::{
    BaseAddresses, CallFrameInstruction, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian,
    ParsedEhFrameHdr, Pointer, Register, RegisterRule, UnwindContext, UnwindSection,
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

/// The tables of a file.
#[derive(Debug)]
pub(super) struct Tables {
    segments: Segments,
    header: Vec<u8>,
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
            && self.header == other.header
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
        let header = elf
            .section_by_name(".eh_frame_hdr")
            .ok_or(NoTables::Refused)?;
        if header.size().saturating_add(frames.size()) > MOST_BYTES.min(room) {
            return Err(NoTables::Refused);
        }
        let bases = BaseAddresses::default()
            .set_eh_frame_hdr(header.address())
            .set_eh_frame(frames.address());
        let mut tables = Self {
            segments: Segments::of(&elf),
            header: header.data().map_err(refused)?.to_vec(),
            frames: frames.data().map_err(refused)?.to_vec(),
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
        (self.header.len() + self.frames.len()) as u64
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
        let header = self.parsed_header()?;
        let frames = self.frames();
        let table = header.table()?;
        let fde = table
            .fde_for_address(&frames, &self.bases, address, EhFrame::cie_from_offset)
            .ok()?;
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

    fn parsed_header(&self) -> Option<ParsedEhFrameHdr<Bytes<'_>>> {
        EhFrameHdr::new(&self.header, LittleEndian)
            .parse(&self.bases, 8)
            .ok()
    }

    /// Looks at functions here and there; `None` if the tables are damaged.
    fn probe_frame_pointers(&self) -> Option<bool> {
        let header = self.parsed_header()?;
        let table = header.table()?;
        let frames = self.frames();
        let (mut seen, mut keeping) = (0, 0);
        let mut entries = table.iter(&self.bases);
        let many = self.header.len() / 8;
        let Pointer::Direct(begin) = header.eh_frame_ptr() else {
            return None;
        };
        while let Ok(Some((_begin, at))) = entries.nth(many / PROBED_FUNCTIONS)
            && let Pointer::Direct(entry) = at
        {
            if entry < begin {
                return None;
            }
            let offset = table.pointer_to_offset(at).ok()?;
            let fde = frames
                .fde_from_offset(&self.bases, offset, EhFrame::cie_from_offset)
                .ok()?;
            seen += 1;
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
        Some(keeping * 100 >= seen * FRAMED_PERCENT)
    }
}
