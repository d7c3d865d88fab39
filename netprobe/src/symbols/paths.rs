//! Opens what a stranger's path leads to, below a root, without ever looking something up in a file system that is not
//! local: such a lookup may wait for ever, and then nothing ends the process that waits.
//!
//! So a path is followed part by part, links too. No step leaves the mount it begins in, except where [`Mounts`] says
//! that what is mounted there is local.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat},
    io::Errno,
};

use super::mounts::Mounts;

/// Links that are followed in one path, as the kernel does.
const MOST_LINKS: usize = 40;
/// Parts of a path, with those of its links.
const MOST_PARTS: usize = 1024;
/// How far up processes are asked what the root of one is.
const MOST_PARENTS: usize = 8;

/// A root folder, and what is mounted below it.
#[derive(Debug)]
pub(super) struct Root {
    folder: OwnedFd,
    mounts: Mounts,
}

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is nothing.
    Absent,
    /// It leads into a file system that is not known to be local.
    Remote,
    /// We may not look.
    Denied,
    /// Another reason.
    Failed,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR => Self::Absent,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            _ => Self::Failed,
        }
    }
}

impl Root {
    /// That of a task, if it is in a local file system.
    pub(super) fn of(task: u32) -> Result<Self, Refusal> {
        let mounts = Mounts::of(&task.to_string());
        if mounts.is_local_at(Path::new("/")) == Some(false) {
            return Err(Refusal::Remote);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = format!("/proc/{task}/root");
        let folder = openat(CWD, root, flags, Mode::empty())?;
        let id = mount_id(&folder).ok_or(Refusal::Failed)?;
        // After chroot(2) the mount that the root is in is not in the list.
        let is_local = mounts.is_local(id).or_else(|| is_local_above(task, id));
        if is_local != Some(true) {
            return Err(Refusal::Remote);
        }
        Ok(Self { folder, mounts })
    }

    /// Our own.
    pub(super) fn own() -> Result<Self, Refusal> {
        Self::of(std::process::id())
    }

    /// What a path leads to, as a descriptor that gives no access to it.
    pub(super) fn find(&self, path: &Path) -> Result<OwnedFd, Refusal> {
        let mut walk = Walk {
            root: self,
            above: Vec::new(),
            rest: Vec::new(),
        };
        walk.push(path)?;
        let mut links = 0;
        while let Some(part) = walk.rest.pop() {
            let Some(link) = walk.step(&part)? else {
                continue;
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(Refusal::Failed);
            }
            walk.push(&link)?;
        }
        match walk.above.pop() {
            Some((_, found)) => Ok(found),
            None => Ok(self.folder.try_clone().map_err(|_error| Refusal::Failed)?),
        }
    }
}

/// The way from a root.
#[derive(Debug)]
struct Walk<'a> {
    root: &'a Root,
    /// What was passed, with its names.
    above: Vec<(OsString, OwnedFd)>,
    /// The parts to come, the next one last.
    rest: Vec<OsString>,
}

impl Walk<'_> {
    /// Goes on with a path.
    fn push(&mut self, path: &Path) -> Result<(), Refusal> {
        let parts = path.components().rev();
        self.rest
            .extend(parts.map(|part| part.as_os_str().to_owned()));
        if self.rest.len() + self.above.len() > MOST_PARTS {
            return Err(Refusal::Failed);
        }
        Ok(())
    }

    /// Takes a part; if that is a link, where it leads.
    fn step(&mut self, part: &OsStr) -> Result<Option<PathBuf>, Refusal> {
        match Path::new(part).components().next() {
            None | Some(Component::CurDir | Component::Prefix(_)) => return Ok(None),
            Some(Component::RootDir) => self.above.clear(),
            Some(Component::ParentDir) => {
                self.above.pop();
            }
            Some(Component::Normal(name)) => {
                let found = self.open(name)?;
                let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
                if kind == FileType::Symlink {
                    let link = readlinkat(&found, "", Vec::new())?;
                    return Ok(Some(OsString::from_vec(link.into_bytes()).into()));
                }
                self.above.push((name.to_owned(), found));
            }
        }
        Ok(None)
    }

    /// Opens what is in the folder that was reached, if it is in a local file system.
    fn open(&self, name: &OsStr) -> Result<OwnedFd, Refusal> {
        let here = self
            .above
            .last()
            .map_or(&self.root.folder, |(_, here)| here);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(here, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Err(Errno::XDEV) => {}
            found => return Ok(found?),
        }
        let mounts = &self.root.mounts;
        if mounts.is_local_at(&self.place(name)) != Some(true) {
            return Err(Refusal::Remote);
        }
        let found = openat(here, name, flags, Mode::empty())?;
        // Meanwhile something else may have been mounted.
        match mount_id(&found).and_then(|id| mounts.is_local(id)) {
            Some(true) => Ok(found),
            Some(false) | None => Err(Refusal::Remote),
        }
    }

    fn place(&self, name: &OsStr) -> PathBuf {
        let names = self.above.iter().map(|(name, _)| name.as_os_str());
        let mut place = PathBuf::from("/");
        place.extend(names.chain([name]));
        place
    }
}

/// Whether a mount is local, by us and those that started a task.
fn is_local_above(task: u32, id: u64) -> Option<bool> {
    let own = Mounts::of("self").is_local(id);
    let parents = std::iter::successors(parent(task), |task| parent(*task)).take(MOST_PARENTS);
    let mut theirs = parents.filter_map(|task| Mounts::of(&task.to_string()).is_local(id));
    own.or_else(|| theirs.next())
}

fn parent(task: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{task}/stat")).ok()?;
    let parent = crate::observe::stat::field(&stat, 4)?.parse().ok()?;
    (parent > 0).then_some(parent)
}

/// The number of the mount that something open is in; asks no file system.
fn mount_id(open: &OwnedFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", open.as_raw_fd());
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// The path by which something that is open is opened again.
pub(super) fn descriptor(open: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}

/// What the kernel calls something that is open.
pub(super) fn name(open: &OwnedFd) -> Option<PathBuf> {
    fs::read_link(descriptor(open)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_is_followed_as_the_kernel_does() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a/file"), "").unwrap();
        symlink("a/../a", at("link")).unwrap();
        symlink(at("link/file"), at("whole")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        let root = Root::own().unwrap();
        let find = |name: &str| root.find(&at(name)).map(|found| name_of(&found));
        let file = fs::canonicalize(at("a/file")).unwrap();
        for path in ["a/file", "link/file", "whole", "./a/../link/file"] {
            assert_eq!(find(path), Ok(file.clone()), "{path}");
        }
        assert_eq!(find("loop"), Err(Refusal::Failed));
        for path in ["gone", "dangling", "a/file/more"] {
            assert_eq!(find(path), Err(Refusal::Absent), "{path}");
        }
    }

    fn name_of(open: &OwnedFd) -> PathBuf {
        name(open).unwrap()
    }

    #[test]
    fn what_the_kernel_makes_up_is_not_local() {
        let root = Root::own().unwrap();
        for path in ["/proc/self/root/etc", "/sys/kernel"] {
            assert_eq!(
                root.find(Path::new(path)).err(),
                Some(Refusal::Remote),
                "{path}"
            );
        }
        assert!(root.find(Path::new("/../etc/..")).is_ok());
    }

    #[test]
    fn without_its_line_no_mount_is_entered() {
        let mut root = Root::own().unwrap();
        assert!(root.find(Path::new("/dev/shm/..")).is_ok());
        root.mounts = Mounts::default();
        assert_eq!(root.find(Path::new("/dev")).err(), Some(Refusal::Remote));
    }
}
