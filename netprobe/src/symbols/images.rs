//! What a process has mapped to run: read from `/proc/PID/maps`, its files opened once each.
//!
//! Only regular files of local file systems are opened, first without reading rights, so that a
//! pipe or a device behind a path does nothing. Everything has a bound.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Take},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, fstat, open, statx},
    io::{Errno, pread},
    process::{Resource, getrlimit},
};

use super::{
    mounts::Mounts,
    paths::{Refusal, Root, descriptor},
    protocol::Missing,
};
use crate::observe::{clock::now_ns, stat::state};

/// Bytes of `/proc/PID/maps` that are read: some 40,000 mappings.
const MAPS_BYTES: u64 = 4 << 20;
/// Executable mappings kept for one process.
const MOST_MAPPINGS: usize = 16_384;
/// Files that are mapped at a place of the kernel's choosing are above: a third of all addresses.
const FIXED_BELOW: u64 = 0x7fff_ffff_f000 / 3;
/// Threads that are looked at for one that lives.
const MOST_THREADS: usize = 256;
/// Files kept open.
pub(super) const MOST_FILES: usize = 16_384;
/// Files kept open for one process.
const MOST_OF_PROCESS: usize = 1024;
/// How often a file may be written to while it is looked at.
const MOST_CONTENTS: u32 = 8;

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Place of its beginning in the file.
    pub(super) offset: u64,
    pub(super) content: Content,
}

impl Mapping {
    /// Whether its file says where it is, as of a program built without `-pie`: others may be at the same place.
    pub(super) const fn is_fixed(&self) -> bool {
        let is_file = matches!(self.content, Content::File(..) | Content::Refused(..));
        is_file && self.start < FIXED_BELOW
    }
}

/// What is in a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A file of [`Images`], by its number, and its name.
    File(usize, String),
    /// A file that is not opened, and why.
    Refused(Missing, String),
    /// Memory without a file.
    Anonymous,
    /// Something of the kernel's, such as `[vdso]`.
    Kernel(String),
}

/// A line of `maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    start: u64,
    end: u64,
    offset: u64,
    device: String,
    inode: u64,
    path: String,
}

/// What a process has mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    /// What it may run, by address.
    pub(super) mappings: Vec<Mapping>,
    /// There were more than are read.
    pub(super) is_cut: bool,
    /// When reading began, by `CLOCK_MONOTONIC`.
    pub(super) began_ns: u64,
}

impl Mapped {
    /// Whether there is a file among it that says where it is.
    pub(super) fn has_fixed_code(&self) -> bool {
        self.mappings.iter().any(Mapping::is_fixed)
    }
}

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Its number, or why it has none.
    number: Result<usize, Missing>,
    /// How often it has had another content.
    contents: u32,
}

/// Files that processes have mapped.
#[derive(Debug, Default)]
pub(super) struct Images {
    files: Vec<OwnedFd>,
    /// Which each of them is; nothing if that is not known.
    ids: Vec<Option<FileId>>,
    numbers: HashMap<(String, u64), Known>,
    /// How many were opened for each process.
    of_processes: HashMap<u32, usize>,
    /// Those that were opened for the last list of mappings.
    opened: Vec<(String, u64)>,
}

impl Images {
    /// The path under which a file can be opened again, whatever becomes of its name; nothing if it has been written to, as
    /// what was mapped then is there no more.
    pub(super) fn path(&self, number: usize) -> Option<PathBuf> {
        let file = self.files.get(number)?;
        if self.was_written(number) {
            return None;
        }
        Some(descriptor(file))
    }

    /// Reads what is at a place of a file, if it was not written to; how much of `bytes` there is.
    pub(super) fn read(&self, number: usize, offset: u64, bytes: &mut [u8]) -> Option<usize> {
        let file = self.files.get(number)?;
        if self.was_written(number) {
            return None;
        }
        pread(file, bytes, offset).ok()
    }

    /// The executable mappings of a process, by address; none if it is gone.
    pub(super) fn mappings(&mut self, pid: u32) -> Option<Mapped> {
        self.opened.clear();
        let began_ns = now_ns();
        let pid = with_memory(pid);
        let text = read_at_most(Path::new(&format!("/proc/{pid}/maps")), MAPS_BYTES)?;
        let mut lines = text.lines().filter_map(parse);
        let mut remote = None;
        let mut mappings = Vec::new();
        for line in lines.by_ref().take(MOST_MAPPINGS) {
            let content = if line.inode != 0 {
                let remote =
                    remote.get_or_insert_with(|| Mounts::of(&pid.to_string()).remote_devices());
                self.file(pid, &line, remote)
            } else if line.path.starts_with('[') && !line.path.starts_with("[anon") {
                Content::Kernel(line.path)
            } else {
                Content::Anonymous
            };
            mappings.push(Mapping {
                start: line.start,
                end: line.end,
                offset: line.offset,
                content,
            });
        }
        let is_cut = text.len() as u64 >= MAPS_BYTES || lines.next().is_some();
        (!mappings.is_empty()).then_some(Mapped {
            mappings,
            is_cut,
            began_ns,
        })
    }

    /// Whether the process still has the same file at the place of a mapping; nothing if that cannot be told. One call,
    /// which asks no file system: it may be a network drive by now.
    pub(super) fn is_still(&self, pid: u32, mapping: &Mapping) -> Option<bool> {
        let Content::File(number, _) = mapping.content else {
            return None;
        };
        let known = self.ids.get(number)?.as_ref()?;
        let of = |task: u32| {
            let path = format!(
                "/proc/{task}/map_files/{:x}-{:x}",
                mapping.start, mapping.end
            );
            FileId::of(CWD, &path, AtFlags::empty())
        };
        let gone = |errno| match with_memory(pid) {
            task if task != pid => of(task),
            _ => Err(errno),
        };
        match of(pid).or_else(gone) {
            Ok(now) => Some(now == *known),
            Err(Errno::NOENT | Errno::SRCH) => Some(false),
            Err(_) => None,
        }
    }

    /// Forgets the files that were opened for the last list: the process has become another program meanwhile, and at the
    /// same place may be that one's file.
    pub(super) fn forget_last(&mut self) {
        for key in self.opened.drain(..) {
            if let Some(Ok(number)) = self.numbers.remove(&key).map(|known| known.number) {
                // The last to be opened, so that others keep their numbers.
                self.files.truncate(number.min(self.files.len()));
                self.ids.truncate(self.files.len());
            }
        }
    }

    /// Whether the content of a file is not that which it had when it was opened.
    pub(super) fn was_written(&self, number: usize) -> bool {
        let (Some(file), Some(Some(then))) = (self.files.get(number), self.ids.get(number)) else {
            return false;
        };
        FileId::of(file, "", AtFlags::EMPTY_PATH).is_ok_and(|now| now != *then)
    }

    fn file(&mut self, pid: u32, line: &Line, remote: &[String]) -> Content {
        let path = line.path.strip_suffix(" (deleted)").unwrap_or(&line.path);
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let key = (line.device.clone(), line.inode);
        let last = self.numbers.get(&key).copied();
        let is_same = |known: &Known| !known.number.is_ok_and(|number| self.was_written(number));
        let known = last.filter(is_same).unwrap_or_else(|| {
            let contents = last.map_or(0, |last| last.contents + 1);
            let number = if contents < MOST_CONTENTS {
                self.open(pid, line, remote)
            } else {
                Err(Missing::Overwritten)
            };
            let known = Known { number, contents };
            self.numbers.insert(key.clone(), known);
            self.opened.push(key);
            known
        });
        match known.number {
            Ok(number) => Content::File(number, name),
            Err(missing) => Content::Refused(missing, name),
        }
    }

    fn open(&mut self, pid: u32, line: &Line, remote: &[String]) -> Result<usize, Missing> {
        if remote.contains(&line.device) {
            return Err(Missing::NotRegular);
        }
        let of_process = self.of_processes.entry(pid).or_default();
        if *of_process >= MOST_OF_PROCESS || self.files.len() >= most_files() {
            return Err(Missing::TooManyFiles);
        }
        *of_process += 1;
        // The link leads to the file itself, in whatever mount namespace and also if it was
        // deleted; the path is for want of the privilege to follow it.
        let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", line.start, line.end);
        let file = match open_regular(Path::new(&exact)) {
            Err(Missing::Unreadable) => {
                let file = open_below(pid, Path::new(&line.path))?;
                let inode = fstat(&file).map_err(|_errno| Missing::Unreadable)?.st_ino;
                // Overlays may show another number; a wrong file gives wrong names.
                if inode != line.inode {
                    return Err(Missing::Unreadable);
                }
                file
            }
            found => found?,
        };
        self.ids
            .push(FileId::of(&file, "", AtFlags::EMPTY_PATH).ok());
        self.files.push(file);
        Ok(self.files.len() - 1)
    }
}

/// What tells a file from others while it is open, and from itself before it was written to.
#[derive(Debug, PartialEq, Eq)]
struct FileId {
    device: (u32, u32),
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    written: (i64, u32),
}

impl FileId {
    fn of(folder: impl AsFd, path: &str, flags: AtFlags) -> Result<Self, Errno> {
        let flags = flags | AtFlags::STATX_DONT_SYNC;
        let wanted = StatxFlags::INO | StatxFlags::SIZE | StatxFlags::MTIME;
        let stat = statx(folder, path, flags, wanted)?;
        Ok(Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            size: stat.stx_size,
            written: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        })
    }
}

/// Files that may be kept open: as many again are while their names are looked up.
fn most_files() -> usize {
    let allowed = getrlimit(Resource::Nofile).current;
    let allowed = allowed.and_then(|allowed| usize::try_from(allowed).ok());
    allowed.map_or(MOST_FILES, |allowed| MOST_FILES.min(allowed / 2))
}

/// Opens a file for reading, after it was found to be a regular one.
pub(super) fn open_regular(path: &Path) -> Result<OwnedFd, Missing> {
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(why)?;
    open_found(&handle)
}

/// Opens a file below the root of a task, if no part of the path is in a file system that is not known to be local.
pub(super) fn open_below(task: u32, path: &Path) -> Result<OwnedFd, Missing> {
    let found = Root::of(task).and_then(|root| root.find(path));
    let found = found.map_err(|refusal| match refusal {
        Refusal::Remote => Missing::NotRegular,
        Refusal::Absent | Refusal::Denied | Refusal::Failed => Missing::Unreadable,
    });
    open_found(&found?)
}

/// Opens a file that was found for reading, if it is a regular one.
pub(super) fn open_found(handle: &OwnedFd) -> Result<OwnedFd, Missing> {
    let stat = fstat(handle).map_err(why)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Missing::NotRegular);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(descriptor(handle), flags, Mode::empty()).map_err(why)
}

fn why(errno: Errno) -> Missing {
    match errno {
        Errno::LOOP | Errno::NXIO => Missing::NotRegular,
        _ => Missing::Unreadable,
    }
}

/// An executable mapping of `/proc/PID/maps`.
pub(super) fn parse(line: &str) -> Option<Line> {
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let permissions = parts.next()?;
    if !permissions.contains('x') {
        return None;
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Line {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(parts.next()?)?,
        device: parts.next()?.to_owned(),
        inode: parts.next()?.parse().ok()?,
        path: parts.next().unwrap_or_default().trim_start().to_owned(),
    })
}

/// The beginning of a file of `/proc`, as text.
pub(super) fn read_at_most(path: &Path, bytes: u64) -> Option<String> {
    let file = File::open(path).ok()?;
    let mut content = Vec::new();
    let mut limited: Take<File> = file.take(bytes);
    limited.read_to_end(&mut content).ok()?;
    Some(String::from_utf8_lossy(&content).into_owned())
}

/// A thread of a process that has its memory, though its first one may have ended; else the process.
pub(super) fn with_memory(pid: u32) -> u32 {
    let state = |task: u32| state(&fs::read_to_string(format!("/proc/{task}/stat")).ok()?);
    if state(pid) != Some('Z') {
        return pid;
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten().take(MOST_THREADS);
    let mut ids = tasks.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let lives = |task: &u32| state(*task).is_some_and(|state| !matches!(state, 'Z' | 'X'));
    ids.find(lives).unwrap_or(pid)
}

/// The id of a process in its own innermost namespace, by which JIT compilers name their maps.
pub(super) fn inner_pid(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|ids| ids.split_whitespace().last())
        .and_then(|id| id.parse().ok())
        .unwrap_or(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_lines_are_taken_apart() {
        let line = "7f1c2000-7f1c3000 r-xp 00026000 fd:01 131079      /usr/lib/my lib.so (deleted)";
        let parsed = parse(line).unwrap();
        assert_eq!((parsed.start, parsed.end), (0x7f1c_2000, 0x7f1c_3000));
        assert_eq!(parsed.offset, 0x26000);
        assert_eq!((parsed.device.as_str(), parsed.inode), ("fd:01", 131_079));
        assert_eq!(parsed.path, "/usr/lib/my lib.so (deleted)");
        assert_eq!(parse("7f1c2000-7f1c3000 rw-p 00026000 fd:01 1 /x"), None);
        assert_eq!(parse("no line at all"), None);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR).unwrap();
        // Opening a pipe that nobody writes to would wait for ever.
        assert_eq!(open_regular(&fifo).unwrap_err(), Missing::NotRegular);
        let device = Path::new("/dev/null");
        assert_eq!(open_regular(device).unwrap_err(), Missing::NotRegular);
        let gone = folder.path().join("gone");
        assert_eq!(open_regular(&gone).unwrap_err(), Missing::Unreadable);
        assert!(open_regular(Path::new("/proc/self/exe")).is_ok());
    }

    #[test]
    fn our_own_program_is_among_our_mappings() {
        let mut images = Images::default();
        let Mapped {
            mappings, is_cut, ..
        } = images.mappings(std::process::id()).unwrap();
        assert!(!is_cut);
        let here = our_own_program_is_among_our_mappings as *const () as u64;
        let mapping = mappings
            .iter()
            .find(|mapping| (mapping.start..mapping.end).contains(&here))
            .unwrap();
        let Content::File(number, _) = &mapping.content else {
            panic!("{mapping:?}");
        };
        let exe = fs::canonicalize("/proc/self/exe").unwrap();
        let path = images.path(*number).unwrap();
        assert_eq!(fs::canonicalize(path).unwrap(), exe);
        let us = std::process::id();
        assert_ne!(images.is_still(us, mapping), Some(false));
        let moved = Mapping {
            end: mapping.end + 4096,
            ..mapping.clone()
        };
        assert_ne!(images.is_still(us, &moved), Some(true));
    }

    #[test]
    fn a_file_that_was_written_to_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let shell = |script: &str| {
            let mut shell = std::process::Command::new("sh");
            let done = shell.args(["-ec", script]).current_dir(folder.path());
            assert!(done.status().unwrap().success());
        };
        shell("cp $(command -v sleep) program");
        let mut images = Images::default();
        let run = |images: &mut Images| {
            let mut program = std::process::Command::new(folder.path().join("program"));
            let mut child = program.arg("100").spawn().unwrap();
            let number = loop {
                // In the middle of exec nothing is mapped yet.
                let mappings = images.mappings(child.id()).map(|mapped| mapped.mappings);
                let mut contents = mappings.into_iter().flatten();
                let number = contents.find_map(|mapping| match mapping.content {
                    Content::File(number, name) if name == "program" => Some(number),
                    _ => None,
                });
                if let Some(number) = number {
                    break number;
                }
                std::thread::yield_now();
            };
            child.kill().unwrap();
            child.wait().unwrap();
            number
        };
        let first = run(&mut images);
        assert_eq!(run(&mut images), first);
        assert!(images.path(first).is_some());
        shell("echo more >>program");
        assert!(images.path(first).is_none());
        let second = run(&mut images);
        assert_ne!(second, first);
        assert!(images.path(second).is_some());
    }

    #[test]
    fn a_process_with_many_files_costs_others_nothing() {
        let mut images = Images::default();
        images
            .of_processes
            .insert(std::process::id(), MOST_OF_PROCESS);
        let mapped = images.mappings(std::process::id()).unwrap();
        let refused = |mapping: &Mapping| {
            matches!(mapping.content, Content::Refused(Missing::TooManyFiles, _))
        };
        assert!(mapped.mappings.iter().any(refused));
        assert!(images.files.is_empty());
    }

    #[test]
    fn files_of_a_process_that_became_another_one_are_forgotten() {
        let mut images = Images::default();
        images.mappings(std::process::id()).unwrap();
        let files = images.files.len();
        assert!(files > 0);
        // The list is the same, and nothing is new in it.
        images.mappings(std::process::id()).unwrap();
        images.forget_last();
        assert_eq!((images.files.len(), images.numbers.len()), (files, files));
        let mut images = Images::default();
        images.mappings(std::process::id()).unwrap();
        images.forget_last();
        assert_eq!((images.files.len(), images.numbers.len()), (0, 0));
    }
}
