//! Writes the archive that a kernel unpacks into its first file system: the "newc" format of cpio(5).

use std::io::{self, Write};

/// Kinds of file, as in the mode of stat(2).
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that is being written.
pub(super) struct Archive<W: Write> {
    out: W,
    entries: u32,
}

/// What a header says besides the name and size.
struct Entry {
    mode: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub(super) fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds a directory; its parents must have been added before.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, &plain(DIRECTORY | 0o755), &[])
    }

    /// Adds a file that everyone can execute.
    pub(super) fn file(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.entry(path, &plain(FILE | 0o755), data)
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, &plain(SYMLINK | 0o777), target.as_bytes())
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        let entry = Entry {
            mode: CHARACTER_DEVICE | 0o600,
            device: (major, minor),
        };
        self.entry(path, &entry, &[])
    }

    /// Ends the archive and returns what it was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", &plain(0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, entry: &Entry, data: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let too_big = |_| io::Error::new(io::ErrorKind::FileTooLarge, path.to_owned());
        let size = u32::try_from(data.len()).map_err(too_big)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_big)?;
        let (major, minor) = entry.device;
        // inode, mode, uid, gid, links, mtime, size, device of the file system, device, name, checksum
        let fields = [
            self.entries,
            entry.mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name.as_bytes())?;
        // Header and name together, then the data, end on a multiple of four.
        self.out
            .write_all(&[0; 4][..=padding(110 + name.len() + 1)])?;
        self.out.write_all(data)?;
        self.out.write_all(&[0; 4][..padding(data.len())])
    }
}

fn plain(mode: u32) -> Entry {
    Entry {
        mode,
        device: (0, 0),
    }
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_the_entries_as_cpio_defines_them() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("/bin").expect("written");
        archive.file("/bin/a", b"hello").expect("written");
        archive.symlink("/sbin", "bin").expect("written");
        archive.device("/dev/null", 1, 3).expect("written");
        let bytes = archive.finish().expect("written");
        assert_eq!(bytes.len() % 4, 0);
        let entries = parse(&bytes);
        let expected = [
            ("bin", 0o040_755, ""),
            ("bin/a", 0o100_755, "hello"),
            ("sbin", 0o120_777, "bin"),
            ("dev/null", 0o020_600, ""),
            ("TRAILER!!!", 0, ""),
        ];
        assert_eq!(entries.len(), expected.len());
        for (entry, (name, mode, data)) in entries.iter().zip(expected) {
            assert_eq!(
                (entry.0.as_str(), entry.1, entry.2.as_str()),
                (name, mode, data)
            );
        }
    }

    /// An independent reading of the format: name, mode and data of each entry.
    fn parse(mut bytes: &[u8]) -> Vec<(String, u32, String)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let start = 6 + index * 8;
                let digits = str::from_utf8(&bytes[start..start + 8]).expect("text");
                usize::from_str_radix(digits, 16).expect("a number")
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let data_start = (110 + name_size).next_multiple_of(4);
            let name = String::from_utf8_lossy(&bytes[110..110 + name_size - 1]).into_owned();
            let data = String::from_utf8_lossy(&bytes[data_start..data_start + size]).into_owned();
            entries.push((name, u32::try_from(mode).expect("a mode"), data));
            bytes = &bytes[(data_start + size).next_multiple_of(4)..];
        }
        entries
    }
}
