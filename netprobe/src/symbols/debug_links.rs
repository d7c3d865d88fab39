//! The debug information that a file names by a link. blazesym would follow such links wherever a stranger's file has them
//! lead; here only regular files of local file systems are opened, and what was found is what is read.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Read as _,
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Path, PathBuf},
};

use blazesym::helper::read_elf_build_id;
use flate2::Crc;
use object::{LittleEndian, Object as _, ReadCache, read::elf::ElfFile64};

use super::{
    images::open_found,
    paths::{Root, descriptor, name},
};

/// Bytes of a file whose checksum is computed, where no build id tells whether it is the right one.
const MOST_SUMMED: u64 = 256 << 20;

/// Whether a file has links that blazesym would follow.
pub(super) fn has_links(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let file = ReadCache::new(file);
    let Ok(elf) = ElfFile64::<LittleEndian, _>::parse(&file) else {
        return false;
    };
    let links = [".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"];
    links.iter().any(|link| elf.section_by_name(link).is_some())
}

/// The debug information that the file at `path` links to: beside it, or in one of the folders.
pub(super) fn linked(path: &Path, folders: &[PathBuf]) -> Option<OwnedFd> {
    let (linked, checksum) = link(path)?;
    let root = Root::own().ok()?;
    let places = places(place(path, &root).as_deref(), &linked, folders);
    let found = places.iter().filter_map(|place| root.find(place).ok());
    let mut files = found.filter_map(|found| open_found(&found).ok());
    files.find(|file| is_of(path, file, checksum))
}

/// The name of the linked file, and its checksum.
fn link(path: &Path) -> Option<(OsString, u32)> {
    let file = ReadCache::new(File::open(path).ok()?);
    let elf = ElfFile64::<LittleEndian, _>::parse(&file).ok()?;
    let (name, checksum) = elf.gnu_debuglink().ok()??;
    Some((OsString::from_vec(name.to_owned()), checksum))
}

/// Where a file is that may be known by its descriptor alone.
fn place(path: &Path, root: &Root) -> Option<PathBuf> {
    let kernels = path.starts_with("/proc/self/fd");
    let text = kernels.then(|| fs::read_link(path).ok()).flatten();
    name(&root.find(text.as_deref().unwrap_or(path)).ok()?)
}

/// Where a linked file may be, as for gdb and for blazesym.
fn places(place: Option<&Path>, linked: &OsStr, folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folders.iter().map(|folder| folder.join(linked)).collect();
    let Some(beside) = place.and_then(Path::parent) else {
        return found;
    };
    found.push(beside.join(linked));
    found.push(beside.join(".debug").join(linked));
    let below = beside.strip_prefix("/").unwrap_or(beside);
    for folder in folders {
        let above = below.ancestors();
        found.extend(above.map(|above| folder.join(above).join(linked)));
    }
    found.retain(|path| Some(path.as_path()) != place);
    found
}

/// Whether a file is the debug information of that at `path`: by their build ids, or else by the checksum.
fn is_of(path: &Path, debug: &OwnedFd, checksum: u32) -> bool {
    let id = |path: &Path| read_elf_build_id(&path).ok().flatten();
    let debug_id = id(&descriptor(debug));
    match (id(path), debug_id) {
        (Some(id), Some(debug_id)) => id == debug_id,
        _ => sum(debug) == Some(checksum),
    }
}

fn sum(file: &OwnedFd) -> Option<u32> {
    let mut file = File::from(file.try_clone().ok()?).take(MOST_SUMMED);
    let (mut sum, mut buffer) = (Crc::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(sum.sum()),
            length => sum.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::symlink, process::Command};

    /// A folder with a program built by a script.
    fn built(script: &str) -> Option<tempfile::TempDir> {
        let folder = tempfile::tempdir().unwrap();
        let script =
            format!("echo 'int main() {{ return 0; }}' | gcc -g -x c - -o program && {script}");
        let mut shell = Command::new("sh");
        let built = shell.args(["-ec", &script]).current_dir(folder.path());
        if built.status().unwrap().success() {
            return Some(folder);
        }
        println!("SKIP no C compiler");
        None
    }

    #[test]
    fn a_link_leads_to_regular_files_that_belong_to_it() {
        let Some(folder) = built(
            "objcopy -R .note.gnu.build-id program;
            objcopy --only-keep-debug program linked; objcopy --add-gnu-debuglink=linked program; mkdir .debug",
        ) else {
            return;
        };
        let at = |name: &str| folder.path().join(name);
        assert!(has_links(&at("program")) && !has_links(&at("linked")));
        let leads_to = || {
            let found = linked(&at("program"), &[at("folder")]);
            found.map(|found| name(&found).unwrap())
        };
        let place = |name: &str| Some(fs::canonicalize(at(name)).unwrap());
        assert_eq!(leads_to(), place("linked"));
        // As some packages have it.
        fs::rename(at("linked"), at("elsewhere")).unwrap();
        symlink("elsewhere", at("linked")).unwrap();
        assert_eq!(leads_to(), place("elsewhere"));
        fs::remove_file(at("linked")).unwrap();
        assert_eq!(leads_to(), None);
        // Opening this for reading would wait for ever.
        rustix::fs::mkfifoat(rustix::fs::CWD, at("linked"), rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(leads_to(), None);
        fs::rename(at("elsewhere"), at(".debug/linked")).unwrap();
        assert_eq!(leads_to(), place(".debug/linked"));
        fs::write(at(".debug/linked"), "of another program").unwrap();
        assert_eq!(leads_to(), None);
    }

    #[test]
    fn a_link_to_common_debug_information_is_a_link() {
        let script = "printf 'common\\\\0abcdefghijklmnopqrst' >section; cp program plain;
            objcopy --add-section .gnu_debugaltlink=section program";
        let Some(folder) = built(script) else { return };
        assert!(has_links(&folder.path().join("program")));
        assert!(!has_links(&folder.path().join("plain")));
    }
}
