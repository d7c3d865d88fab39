//! Names for places in ELF files, by blazesym: symbol tables, and debug information with inlined
//! functions, also where a build id or a debug link leads to it.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::Write,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use blazesym::{
    helper::read_elf_build_id,
    symbolize::{
        Input, Sym, Symbolized, Symbolizer,
        source::{Elf, Source},
    },
};
use object::{LittleEndian, ReadCache, read::elf::ElfFile64};

use super::{
    debug_links::{has_links, linked},
    demangle::demangled,
    go_table::GoTable,
    paths::descriptor,
    segments::Segments,
};

/// Bytes of a name that are kept; templates can be longer than anybody reads.
const NAME_BYTES: usize = 2048;

/// Where debug information is that was installed beside stripped files.
const DEBUG_FOLDERS: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// Looks up names, and remembers the files it has read.
#[derive(Debug)]
pub(super) struct Naming {
    symbolizer: Symbolizer,
    uses_debug_info: bool,
    debug_folders: Vec<PathBuf>,
    /// What there is beside each file that has not all names itself.
    beside: RefCell<HashMap<PathBuf, Option<Beside>>>,
    /// Files that link to debug information, and others.
    has_links: RefCell<HashMap<PathBuf, bool>>,
    /// The tables of the Go programs among them.
    of_go: RefCell<HashMap<PathBuf, Option<GoTable>>>,
}

/// The debug information of a file.
#[derive(Debug)]
struct Beside {
    of: Debug,
    /// Those of the file itself: of the debug information only the addresses hold.
    segments: Segments,
}

/// Where debug information is.
#[derive(Debug)]
enum Debug {
    /// Among what is installed.
    Installed(PathBuf),
    /// Anywhere, by a link.
    Linked(OwnedFd),
}

impl Beside {
    /// Of the file at `path`: by its build id in one of the folders, or by its link.
    fn find(path: &Path, folders: &[PathBuf]) -> Option<Self> {
        let installed = || Self::installed(path, folders).map(Debug::Installed);
        let linked = || linked(path, folders).map(Debug::Linked);
        Some(Self {
            of: installed().or_else(linked)?,
            segments: segments(path)?,
        })
    }

    fn installed(path: &Path, folders: &[PathBuf]) -> Option<PathBuf> {
        let build_id = read_elf_build_id(path).ok()??;
        let name = debug_name(&build_id)?;
        let has_its_id = |path: &PathBuf| {
            let id = read_elf_build_id(path).ok().flatten();
            id.is_some_and(|id| id == build_id)
        };
        let mut candidates = folders.iter().map(|folder| folder.join(&name));
        candidates.find(has_its_id)
    }

    fn path(&self) -> PathBuf {
        match &self.of {
            Debug::Installed(path) => path.clone(),
            Debug::Linked(file) => descriptor(file),
        }
    }
}

/// Where the debug information of a build id is, in each folder.
fn debug_name(build_id: &[u8]) -> Option<String> {
    let (first, rest) = build_id.split_first()?;
    let mut name = format!(".build-id/{first:02x}/");
    for byte in rest {
        // Writing to a string cannot fail.
        let _written = write!(name, "{byte:02x}");
    }
    Some(name + ".debug")
}

fn segments(path: &Path) -> Option<Segments> {
    let file = ReadCache::new(File::open(path).ok()?);
    let elf = ElfFile64::<LittleEndian, _>::parse(&file).ok()?;
    Some(Segments::of(&elf))
}

impl Naming {
    /// Reads nothing yet.
    pub(super) fn new(uses_debug_info: bool) -> Self {
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .enable_code_info(uses_debug_info)
            .enable_inlined_fns(uses_debug_info)
            .enable_demangling(false)
            .build();
        Self {
            symbolizer,
            uses_debug_info,
            debug_folders: DEBUG_FOLDERS.map(PathBuf::from).into(),
            beside: RefCell::default(),
            has_links: RefCell::default(),
            of_go: RefCell::default(),
        }
    }

    fn has_links(&self, path: &Path) -> bool {
        let mut known = self.has_links.borrow_mut();
        let known = known.entry(path.to_owned());
        *known.or_insert_with(|| has_links(path))
    }

    /// For each offset in the file at `path` its function, and those inlined there.
    pub(super) fn names(&self, path: &Path, offsets: &[u64]) -> Vec<Option<Vec<String>>> {
        let mut names = vec![None; offsets.len()];
        // What was linked has more than is left in the file itself.
        let is_first = self.uses_debug_info && self.has_links(path);
        if is_first {
            self.name_beside(path, offsets, &mut names);
        }
        if names.contains(&None) {
            let own = self.look_up(path, Input::FileOffset(offsets));
            for (names, own) in names.iter_mut().zip(own) {
                *names = names.take().or(own);
            }
        }
        if self.uses_debug_info && !is_first && names.contains(&None) {
            self.name_beside(path, offsets, &mut names);
        }
        if names.contains(&None) {
            self.name_by_go(path, offsets, &mut names);
        }
        names
    }

    /// Fills in the names that a stripped Go program still knows.
    fn name_by_go(&self, path: &Path, offsets: &[u64], names: &mut [Option<Vec<String>>]) {
        let mut known = self.of_go.borrow_mut();
        let table = known
            .entry(path.to_owned())
            .or_insert_with(|| GoTable::find(path));
        let Some(table) = table else { return };
        let places = offsets.iter().zip(names);
        for (offset, names) in places.filter(|(_, names)| names.is_none()) {
            *names = table.name(*offset).map(|name| vec![name]);
        }
    }

    fn look_up(&self, path: &Path, places: Input<&[u64]>) -> Vec<Option<Vec<String>>> {
        let mut elf = Elf::new(path);
        // Links are followed only where no stranger has made them.
        let mut folders = self.debug_folders.iter();
        let is_installed = folders.any(|folder| path.starts_with(folder));
        elf.debug_syms = self.uses_debug_info && (is_installed || !self.has_links(path));
        let found = self.symbolizer.symbolize(&Source::Elf(elf), places);
        match found {
            Ok(found) => found.into_iter().map(frames).collect(),
            Err(error) => {
                log::debug!("symbols of {}: {error}", path.display());
                vec![None; places.into_inner().len()]
            }
        }
    }

    /// Fills in the names that are missing by what there is beside the file.
    fn name_beside(&self, path: &Path, offsets: &[u64], names: &mut [Option<Vec<String>>]) {
        let mut known = self.beside.borrow_mut();
        let beside = known
            .entry(path.to_owned())
            .or_insert_with(|| Beside::find(path, &self.debug_folders));
        let Some(beside) = beside else { return };
        let places = offsets.iter().zip(names);
        let places = places.filter(|(_, names)| names.is_none());
        let (addresses, nameless): (Vec<u64>, Vec<_>) = places
            .filter_map(|(offset, names)| Some((beside.segments.address(*offset)?, names)))
            .unzip();
        let found = self.look_up(&beside.path(), Input::VirtOffset(&addresses));
        for (names, found) in nameless.into_iter().zip(found) {
            *names = found;
        }
    }
}

fn frames(symbolized: Symbolized<'_>) -> Option<Vec<String>> {
    let Symbolized::Sym(symbol) = symbolized else {
        return None;
    };
    let Sym { name, inlined, .. } = symbol;
    let mut frames = vec![cut(&demangled(&name)).to_owned()];
    frames.extend(
        inlined
            .iter()
            .map(|inner| format!("{}_[i]", cut(&demangled(&inner.name)))),
    );
    Some(frames)
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSymbol};
    use std::{fs, process::Command};

    #[test]
    fn functions_of_c_keep_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'int a(int x) { return x + 1; } int main(int c, char **v) { return a(c); }' | gcc -O0 -x c - -o program";
        let mut shell = Command::new("sh");
        let built = shell.args(["-c", script]).current_dir(folder.path());
        if !built.status().unwrap().success() {
            println!("SKIP no C compiler");
            return;
        }
        let program = folder.path().join("program");
        let bytes = fs::read(&program).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok("a"));
        let offset = segments(&program)
            .unwrap()
            .offset(symbol.unwrap().address());
        let names = Naming::new(true).names(&program, &[offset.unwrap()]);
        assert_eq!(names, [Some(vec!["a".to_owned()])]);
    }

    #[test]
    fn a_debug_link_leads_to_names_but_not_into_a_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'static int leaf(int x) { return x + 1; } int main(int c, char **v) { return leaf(c); }' |
            gcc -O0 -g -x c - -o program && objcopy --only-keep-debug program linked && strip -o bare program &&
            objcopy --add-gnu-debuglink=linked bare && mkfifo pipe";
        let mut shell = Command::new("sh");
        let built = shell.args(["-c", script]).current_dir(folder.path());
        if !built.status().unwrap().success() {
            println!("SKIP no C compiler");
            return;
        }
        let at = |name: &str| folder.path().join(name);
        let bytes = fs::read(at("program")).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let mut symbols = elf.symbols();
        let leaf = symbols.find(|symbol| symbol.name() == Ok("leaf")).unwrap();
        let offset = segments(&at("bare")).unwrap().offset(leaf.address());
        let names = || Naming::new(true).names(&at("bare"), &[offset.unwrap()]);
        assert_eq!(names(), [Some(vec!["leaf".to_owned()])]);
        // This would wait for ever.
        fs::rename(at("pipe"), at("linked")).unwrap();
        assert_eq!(names(), [None]);
    }

    #[test]
    fn a_build_id_alone_leads_to_debug_information() {
        let folder = tempfile::tempdir().unwrap();
        let script = "echo 'static int leaf(int x) { return x + 1; } int main(int c, char **v) { return leaf(c); }' |
            gcc -O0 -g -Wl,--build-id -x c - -o program && objcopy --only-keep-debug program debug && strip -o bare program";
        let mut shell = Command::new("sh");
        let built = shell.args(["-c", script]).current_dir(folder.path());
        if !built.status().unwrap().success() {
            println!("SKIP no C compiler");
            return;
        }
        let at = |name: &str| folder.path().join(name);
        let bytes = fs::read(at("program")).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        let mut symbols = elf.symbols();
        let leaf = symbols.find(|symbol| symbol.name() == Ok("leaf")).unwrap();
        let segments = segments(&at("bare")).unwrap();
        let offset = segments.offset(leaf.address()).unwrap();
        let mut naming = Naming::new(true);
        assert_eq!(naming.names(&at("bare"), &[offset]), [None]);
        let id = read_elf_build_id(&at("program")).unwrap().unwrap();
        let place = at(&debug_name(&id).unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(at("debug"), place).unwrap();
        naming = Naming::new(true);
        naming.debug_folders = vec![folder.path().to_owned()];
        let names = naming.names(&at("bare"), &[offset]);
        assert_eq!(names, [Some(vec!["leaf".to_owned()])]);
    }
}
