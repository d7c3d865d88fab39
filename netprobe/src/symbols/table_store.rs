//! The unwind tables of all files that were mapped, each read once, within a bound.

use std::{collections::HashMap, fs::File, rc::Rc};

use super::{
    go_table::GoTable,
    images::{Content, Images, Mapping},
    tables::{NoTables, Tables},
    unwind::Code,
};

/// Bytes of tables that are kept.
const MOST_BYTES: u64 = 40 << 20;
/// Bytes of tables that are read only to find that they are kept already, or that there is no room.
const MOST_UNKEPT: u64 = 512 << 20;
/// What the kernel calls its code in processes.
const VDSO: &str = "[vdso]";

/// Tables by the number of their file.
#[derive(Debug, Default)]
pub(super) struct TableStore {
    files: HashMap<usize, Known>,
    /// All that are kept, by their size.
    kept: HashMap<u64, Vec<Rc<Tables>>>,
    bytes: u64,
    /// Bytes that were read and are not kept.
    unkept: u64,
    vdso: Option<Result<Tables, NoTables>>,
}

/// What is known of a file.
#[derive(Debug)]
struct Known {
    tables: Result<Rc<Tables>, NoTables>,
    /// That of the functions in it which Go has compiled.
    go: Option<GoTable>,
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
        let room = room.max(MOST_UNKEPT.saturating_sub(self.unkept));
        let path = images.path(number);
        let file = path.as_deref().and_then(|path| File::open(path).ok());
        let tables = file
            .ok_or(NoTables::Refused)
            .and_then(|file| Tables::read(file, room))
            .and_then(|tables| self.keep(tables));
        let may_be_go = match &tables {
            Ok(tables) => tables.has_go(),
            Err(why) => *why == NoTables::Absent,
        };
        let go = path
            .filter(|_| may_be_go)
            .as_deref()
            .and_then(GoTable::find);
        self.files.insert(number, Known { tables, go });
    }

    /// Keeps tables, once for all copies of a file, as containers have them.
    fn keep(&mut self, tables: Tables) -> Result<Rc<Tables>, NoTables> {
        let bytes = tables.bytes();
        let kept = self.kept.entry(bytes).or_default();
        if let Some(same) = kept.iter().find(|kept| ***kept == tables) {
            self.unkept += bytes;
            return Ok(Rc::clone(same));
        }
        if self.bytes + bytes > MOST_BYTES {
            self.unkept += bytes;
            return Err(NoTables::Refused);
        }
        self.bytes += bytes;
        Ok(Rc::clone(kept.push_mut(Rc::new(tables))))
    }

    /// What there is to follow at an address of a mapping.
    pub(super) fn code(&self, mapping: &Mapping, address: u64) -> Code<'_> {
        let place = address - mapping.start + mapping.offset;
        match &mapping.content {
            Content::File(number, _) => match self.files.get(number) {
                Some(Known {
                    tables: Ok(tables),
                    go,
                }) => Code::Tables(tables, place, go.as_ref()),
                Some(Known {
                    tables: Err(NoTables::Absent),
                    go,
                }) => go.as_ref().map_or(Code::Bare, |go| Code::Go(go, place)),
                Some(_) | None => Code::Closed,
            },
            Content::Kernel(name) if name == VDSO => match &self.vdso {
                // Its addresses begin at 0.
                Some(Ok(tables)) => Code::Tables(tables, address - mapping.start, None),
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
            .and_then(|known| known.tables.as_ref().ok());
        tables.is_some_and(|tables| !tables.keeps_frame_pointers())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_file_share_their_tables() {
        let program = || File::open("/proc/self/exe").unwrap();
        let tables = || Tables::read(program(), u64::MAX).unwrap();
        let mut store = TableStore::default();
        let first = store.keep(tables()).unwrap();
        let bytes = store.bytes;
        assert!(bytes > 0);
        let second = store.keep(tables()).unwrap();
        assert!(Rc::ptr_eq(&first, &second));
        assert_eq!((store.bytes, store.unkept), (bytes, bytes));
        store.kept.clear();
        store.bytes = MOST_BYTES;
        assert_eq!(store.keep(tables()).err(), Some(NoTables::Refused));
    }
}
