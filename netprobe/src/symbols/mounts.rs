//! What is mounted where, as `/proc/PID/mountinfo` says, and which of it the kernel answers for alone: in a file system
//! that another process or machine answers for, any call can take for ever.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use super::images::read_at_most;

/// Bytes of `/proc/PID/mountinfo` that are read.
const MOUNTS_BYTES: u64 = 4 << 20;

/// File systems on disks and in memory, and those of a virtual machine's host, without which nothing there runs.
const LOCAL: [&str; 35] = [
    "aufs",
    "bcachefs",
    "btrfs",
    "cramfs",
    "devtmpfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "hfs",
    "hfsplus",
    "hugetlbfs",
    "iso9660",
    "jffs2",
    "jfs",
    "minix",
    "msdos",
    "nilfs2",
    "ntfs",
    "ntfs3",
    "overlay",
    "ramfs",
    "reiserfs",
    "romfs",
    "rootfs",
    "squashfs",
    "tmpfs",
    "ubifs",
    "udf",
    "ufs",
    "vfat",
    "virtiofs",
    "zfs",
];

/// The mounts that a process sees.
#[derive(Debug, Default)]
pub(super) struct Mounts(Vec<Mount>);

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    /// As `maps` has it: `MAJOR:MINOR` in hex.
    device: String,
    /// Below the root of the process.
    point: PathBuf,
    is_local: bool,
}

impl Mounts {
    /// Those of a process; only calls that ask no file system.
    pub(super) fn of(process: &str) -> Self {
        let path = format!("/proc/{process}/mountinfo");
        Self::parse(&read_at_most(Path::new(&path), MOUNTS_BYTES).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(Mount::parse).collect())
    }

    /// Devices of file systems that are not local.
    pub(super) fn remote_devices(&self) -> Vec<String> {
        let remote = self.0.iter().filter(|mount| !mount.is_local);
        remote.map(|mount| mount.device.clone()).collect()
    }

    /// Whether the mount with this number is a local one; nothing if it is not among them.
    pub(super) fn is_local(&self, id: u64) -> Option<bool> {
        let mount = self.0.iter().find(|mount| mount.id == id)?;
        Some(mount.is_local)
    }

    /// Whether all that is mounted at a place, one above the other, is local; nothing if nothing is.
    pub(super) fn is_local_at(&self, place: &Path) -> Option<bool> {
        let mut here = self.0.iter().filter(|mount| mount.point == place);
        let first = here.next()?.is_local;
        Some(first && here.all(|mount| mount.is_local))
    }
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        let kind = after.split(' ').next()?;
        Some(Self {
            id,
            device: format!("{major:02x}:{minor:02x}"),
            point: unescaped(fields.nth(1)?),
            is_local: LOCAL.contains(&kind),
        })
    }
}

/// A path in which a space is `\040`.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let code = others.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &others[3..] } else { others };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_answer_for_is_not_local() {
        let mounts = Mounts::parse(
            "22 1 254:0 / / rw - ext4 /dev/vda rw\n\
             30 22 0:40 / /tmp rw shared:3 - tmpfs tmpfs rw\n\
             31 30 0:41 / /tmp rw - fuse.sshfs there rw\n\
             32 22 0:42 / /a\\040b rw - nfs4 there:/ rw\n\
             33 22 0:43 / /new rw - neverheard none rw\n",
        );
        let at = |place: &str| mounts.is_local_at(Path::new(place));
        assert_eq!(
            (at("/"), at("/tmp"), at("/a b")),
            (Some(true), Some(false), Some(false))
        );
        assert_eq!((at("/new"), at("/home")), (Some(false), None));
        assert_eq!(
            (mounts.is_local(30), mounts.is_local(31)),
            (Some(true), Some(false))
        );
        assert_eq!(mounts.is_local(99), None);
        assert_eq!(mounts.remote_devices(), ["00:29", "00:2a", "00:2b"]);
    }
}
