//! Where the parts of an ELF file are in memory, by its program headers.

use object::{
    LittleEndian, ReadRef,
    elf::{FileHeader64, PT_LOAD},
    read::elf::{ElfFile, ProgramHeader},
};

/// A part of the file as it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

/// Those parts of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    /// Those of `elf`.
    pub(super) fn of<'data>(
        elf: &ElfFile<'data, FileHeader64<LittleEndian>, impl ReadRef<'data>>,
    ) -> Self {
        let headers = elf.elf_program_headers().iter();
        let loads = headers.filter(|header| header.p_type(LittleEndian) == PT_LOAD);
        let segments = loads.map(|header| Segment {
            offset: header.p_offset(LittleEndian),
            size: header.p_filesz(LittleEndian),
            address: header.p_vaddr(LittleEndian),
        });
        Self(segments.collect())
    }

    /// The address of a place in the file, as the file has it.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        let inside = |segment: &&Segment| {
            (segment.offset..segment.offset.saturating_add(segment.size)).contains(&offset)
        };
        let segment = self.0.iter().find(inside)?;
        (offset - segment.offset).checked_add(segment.address)
    }

    /// The place in the file of such an address.
    #[cfg(test)]
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        self.0.iter().find_map(|segment| {
            let into = address.checked_sub(segment.address)?;
            (into < segment.size).then_some(segment.offset + into)
        })
    }
}
