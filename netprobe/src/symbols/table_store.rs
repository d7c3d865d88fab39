//! The unwind tables of all files that were mapped, each read once, within a bound.

use std::{collections::HashMap, fs::File};

use super::{
    images::{Content, Images, Mapping},
    tables::{NoTables, Tables},
    unwind::Code,
};

/// Bytes of tables that are kept.
const MOST_BYTES: u64 = 40 << 20;
/// What the kernel calls its code in processes.
const VDSO: &str = "[vdso]";

/// Tables by the number of their file.
#[derive(Debug, Default)]
pub(super) struct TableStore {
    files: HashMap<usize, Result<Tables, NoTables>>,
    bytes: u64,
    vdso: Option<Result<Tables, NoTables>>,
}

impl TableStore {
    /// Reads the tables of a file, if that was not done before.
    pub(super) fn read(&mut self, number: usize, images: &Images) {
        self.vdso
            .get_or_insert_with(|| Tables::of_vdso().ok_or(NoTables::Refused));
        if self.files.contains_key(&number) {
            return;
        }
        let room = MOST_BYTES.saturating_sub(self.bytes);
        let file = images.path(number).and_then(|path| File::open(path).ok());
        let tables = file
            .ok_or(NoTables::Refused)
            .and_then(|file| Tables::read(file, room));
        self.bytes += tables.as_ref().map_or(0, Tables::bytes);
        self.files.insert(number, tables);
    }

    /// What there is to follow at an address of a mapping.
    pub(super) fn code(&self, mapping: &Mapping, address: u64) -> Code<'_> {
        let place = address - mapping.start + mapping.offset;
        match &mapping.content {
            Content::File(number, _) => match self.files.get(number) {
                Some(Ok(tables)) => Code::Tables(tables, place),
                Some(Err(NoTables::Absent)) => Code::Bare,
                Some(Err(NoTables::Refused)) | None => Code::Closed,
            },
            Content::Kernel(name) if name == VDSO => match &self.vdso {
                // Its addresses begin at 0.
                Some(Ok(tables)) => Code::Tables(tables, address - mapping.start),
                Some(Err(_)) | None => Code::Closed,
            },
            Content::Anonymous => Code::Bare,
            Content::Refused(..) | Content::Kernel(_) => Code::Closed,
        }
    }

    /// Whether frame pointers do not lead through the code of a mapping, but tables do.
    pub(super) fn needs_copies(&self, mapping: &Mapping) -> bool {
        let Content::File(number, _) = mapping.content else {
            return false;
        };
        let tables = self
            .files
            .get(&number)
            .and_then(|tables| tables.as_ref().ok());
        tables.is_some_and(|tables| !tables.keeps_frame_pointers())
    }
}
