//! What a process has mapped to run: read from `/proc/PID/maps`, its files opened once each.
//!
//! Only regular files of local file systems are opened, first without reading rights, so that a
//! pipe or a device behind a path does nothing. Everything has a bound.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Take},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
};

use super::protocol::Missing;

/// Bytes of `/proc/PID/maps` that are read: some 40,000 mappings.
const MAPS_BYTES: u64 = 4 << 20;
/// Bytes of `/proc/PID/mountinfo` that are read.
const MOUNTS_BYTES: u64 = 1 << 20;
/// Executable mappings kept for one process.
const MOST_MAPPINGS: usize = 16_384;
/// Files that are mapped at a place of the kernel's choosing are above: a third of all addresses.
const FIXED_BELOW: u64 = 0x7fff_ffff_f000 / 3;
/// Files kept open.
const MOST_FILES: usize = 1024;

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
}

impl Mapped {
    /// Whether there is a file among it that says where it is.
    pub(super) fn has_fixed_code(&self) -> bool {
        self.mappings.iter().any(Mapping::is_fixed)
    }
}

/// Files that processes have mapped.
#[derive(Debug, Default)]
pub(super) struct Images {
    files: Vec<OwnedFd>,
    numbers: HashMap<(String, u64), Result<usize, Missing>>,
    /// Those that were opened for the last list of mappings.
    opened: Vec<(String, u64)>,
}

impl Images {
    /// The path under which a file can be opened again, whatever becomes of its name.
    pub(super) fn path(&self, number: usize) -> Option<PathBuf> {
        let file = self.files.get(number)?;
        Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into())
    }

    /// The executable mappings of a process, by address; none if it is gone.
    pub(super) fn mappings(&mut self, pid: u32) -> Option<Mapped> {
        self.opened.clear();
        let text = read_at_most(Path::new(&format!("/proc/{pid}/maps")), MAPS_BYTES)?;
        let mut lines = text.lines().filter_map(parse);
        let mut remote = None;
        let mut mappings = Vec::new();
        for line in lines.by_ref().take(MOST_MAPPINGS) {
            let content = if line.inode != 0 {
                let remote = remote.get_or_insert_with(|| remote_devices(pid));
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
        (!mappings.is_empty()).then_some(Mapped { mappings, is_cut })
    }

    /// Forgets the files that were opened for the last list: the process has become another program meanwhile, and at the
    /// same place may be that one's file.
    pub(super) fn forget_last(&mut self) {
        for key in self.opened.drain(..) {
            if let Some(Ok(number)) = self.numbers.remove(&key) {
                // The last to be opened, so that others keep their numbers.
                self.files.truncate(number.min(self.files.len()));
            }
        }
    }

    fn file(&mut self, pid: u32, line: &Line, remote: &[String]) -> Content {
        let path = line.path.strip_suffix(" (deleted)").unwrap_or(&line.path);
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let key = (line.device.clone(), line.inode);
        let known = self.numbers.get(&key).copied();
        let number = known.unwrap_or_else(|| {
            let number = self.open(pid, line, remote);
            self.numbers.insert(key.clone(), number);
            self.opened.push(key);
            number
        });
        match number {
            Ok(number) => Content::File(number, name),
            Err(missing) => Content::Refused(missing, name),
        }
    }

    fn open(&mut self, pid: u32, line: &Line, remote: &[String]) -> Result<usize, Missing> {
        if remote.contains(&line.device) {
            return Err(Missing::NotRegular);
        }
        if self.files.len() >= MOST_FILES {
            return Err(Missing::Stopped);
        }
        // The link leads to the file itself, in whatever mount namespace and also if it was
        // deleted; the path is for want of the privilege to follow it.
        let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", line.start, line.end);
        let path = format!("/proc/{pid}/root{}", line.path);
        let file = match open_regular(Path::new(&exact)) {
            Err(Missing::Unreadable) => {
                let file = open_regular(Path::new(&path))?;
                let inode = fstat(&file).map_err(|_errno| Missing::Unreadable)?.st_ino;
                // Overlays may show another number; a wrong file gives wrong names.
                if inode != line.inode {
                    return Err(Missing::Unreadable);
                }
                file
            }
            found => found?,
        };
        self.files.push(file);
        Ok(self.files.len() - 1)
    }
}

/// Opens a file for reading, after it was found to be a regular one.
pub(super) fn open_regular(path: &Path) -> Result<OwnedFd, Missing> {
    let why = |errno: Errno| match errno {
        Errno::LOOP | Errno::NXIO => Missing::NotRegular,
        _ => Missing::Unreadable,
    };
    let handle = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(why)?;
    let stat = fstat(&handle).map_err(why)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Missing::NotRegular);
    }
    let again = format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(&*again, flags, Mode::empty()).map_err(why)
}

/// Devices (`MAJOR:MINOR` in hex, as `maps` has them) of file systems that another process or
/// machine answers for. Reading from them can take for ever.
fn remote_devices(pid: u32) -> Vec<String> {
    const REMOTE: [&str; 8] = [
        "fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph",
    ];
    let path = format!("/proc/{pid}/mountinfo");
    let text = read_at_most(Path::new(&path), MOUNTS_BYTES).unwrap_or_default();
    let mut devices = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let kind = after.split(' ').next().unwrap_or_default();
        let is_remote = REMOTE.contains(&kind) || kind.starts_with("fuse.");
        let device = before.split(' ').nth(2).and_then(|pair| {
            let (major, minor) = pair.split_once(':')?;
            let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
            Some(format!("{major:02x}:{minor:02x}"))
        });
        if let (true, Some(device)) = (is_remote, device) {
            devices.push(device);
        }
    }
    devices
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
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR).unwrap();
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
        let Mapped { mappings, is_cut } = images.mappings(std::process::id()).unwrap();
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
