//! Where the output goes: standard output, or the file of `-o`.

use std::{
    error::Error,
    fmt,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, IsTerminal, Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::geteuid,
};

use super::signals;

/// Opens a file to be written anew: as root in a directory of somebody else, so it follows no symbolic link, and what it
/// makes only its owner may read.
pub(super) fn create(path: &Path) -> Result<File> {
    open(path, true)
}

/// The same of a file that is written later, until when it stays as it is; and whether it was made just now.
pub(super) fn reserve(path: &Path) -> Result<(File, bool)> {
    let was_there = path.symlink_metadata().is_ok();
    Ok((open(path, false)?, !was_there))
}

/// Whether it names what this process has open already, as the shell's `>(command)` does: a link that only the kernel makes.
fn is_own(path: &Path) -> bool {
    let open = fs::canonicalize("/proc/self/fd");
    // /dev/stdout is a link to there.
    let link = path.starts_with("/dev").then(|| path.read_link().ok());
    let link = link.flatten().filter(|link| link.is_absolute());
    let folder = link.as_deref().unwrap_or(path).parent();
    let folder = folder.and_then(|folder| folder.canonicalize().ok());
    folder.is_some_and(|folder| open.is_ok_and(|open| open == folder))
}

/// Whether both are the same file, which may not be there yet.
pub(super) fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let data = path.metadata().ok().filter(Metadata::is_file)?;
        Some((data.dev(), data.ino()))
    };
    let are_there = identity(a).zip(identity(b));
    are_there.map_or(a == b, |(a, b)| a == b)
}

fn open(path: &Path, truncate: bool) -> Result<File> {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(if is_own(path) { 0 } else { libc::O_NOFOLLOW })
        .open(path);
    let why = |error: &io::Error| match error.raw_os_error() {
        Some(libc::ELOOP) => format!(
            "write {}: it is a symbolic link, name the file itself",
            path.display()
        ),
        _ => format!("write {}", path.display()),
    };
    let file = opened.map_err(|error| {
        let why = why(&error);
        anyhow::Error::new(error).context(why)
    })?;
    let data = file.metadata()?;
    // Who has made it beforehand would read along.
    if data.is_file() && data.uid() != geteuid().as_raw() {
        bail!(
            "write {}: it belongs to another user (uid {}): remove it, or name another file",
            path.display(),
            data.uid()
        );
    }
    if truncate && data.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Writes to standard output what is made at once, in one go.
pub(super) fn print<T>(make: impl FnOnce(&mut Output) -> Result<T>) -> Result<T> {
    let mut out = Output::stdout()?;
    let done = make(&mut out)?;
    out.flush()?;
    Ok(done)
}

/// The output of a command. What a full disk leaves is cut back to the last whole record.
pub(super) struct Output {
    writer: Patient,
    /// What is not written yet.
    buffer: Vec<u8>,
    name: String,
    width: Option<usize>,
    /// Bytes that were to be written so far.
    accepted: u64,
    /// Of these, those that are surely there.
    settled: u64,
    /// Records that are there.
    records: u64,
    /// Where records end that may not be there yet.
    ends: Vec<u64>,
}

impl Output {
    /// So much waits to be written at once.
    const ROOM: usize = 1 << 16;

    /// A file that is written anew, or standard output for none and for `-`.
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            return Self::stdout();
        };
        let file = create(path)?;
        Ok(Self::of(file, path.display().to_string(), None))
    }

    fn of(file: File, name: String, width: Option<usize>) -> Self {
        Self {
            writer: Patient::new(file),
            buffer: Vec::with_capacity(Self::ROOM),
            name,
            width,
            accepted: 0,
            settled: 0,
            records: 0,
            ends: Vec::new(),
        }
    }

    fn stdout() -> Result<Self> {
        let out = io::stdout();
        let file = File::from(
            out.as_fd()
                .try_clone_to_owned()
                .context("write standard output")?,
        );
        let width = out
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(&out).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col));
        Ok(Self::of(file, "standard output".to_owned(), width))
    }

    /// A record is whole: what was written so far may stay without what follows.
    pub(super) fn end_record(&mut self) {
        self.ends.push(self.accepted);
    }

    /// Whole records that are there.
    pub(super) const fn records(&self) -> u64 {
        self.records
    }

    /// Whether so much waits that it may be written before a flush.
    pub(super) fn is_filling(&self) -> bool {
        self.buffer.len() >= Self::ROOM / 2
    }

    /// Takes back what was accepted last and waits: only so many records are to be there, if they are not more already.
    pub(super) fn keep(&mut self, records: u64) {
        let wanted = usize::try_from(records.saturating_sub(self.records)).unwrap_or(usize::MAX);
        self.ends.truncate(wanted);
        let end = self.ends.last().copied().unwrap_or(self.settled);
        let excess = usize::try_from(self.accepted.saturating_sub(end)).unwrap_or(usize::MAX);
        let kept = self.buffer.len().saturating_sub(excess);
        self.accepted -= (self.buffer.len() - kept) as u64;
        self.buffer.truncate(kept);
    }

    /// Writes what waits; with nothing to write it fails, too, if whoever read along has seen enough.
    fn write_out(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return self.writer.check();
        }
        let written = self.writer.write_all(&self.buffer);
        // What a failure leaves is not tried again.
        self.buffer.clear();
        written.map_err(|error| {
            self.cut();
            Failure::of(&self.name, error)
        })
    }

    /// All that was accepted is there.
    fn settle(&mut self) {
        self.settled = self.accepted;
        self.records += self.ends.len() as u64;
        self.ends.clear();
    }

    /// Not all of it is: takes away what is there of a record that is not whole. It is the last that is written.
    fn cut(&mut self) {
        if self.writer.is_at_end {
            return;
        }
        let there = self.writer.written;
        let whole = self.ends.partition_point(|end| *end <= there);
        let kept = self.ends[..whole].last().copied().unwrap_or(self.settled);
        self.records += whole as u64;
        self.ends.clear();
        let torn = there.saturating_sub(kept);
        if let Err(error) = self.writer.end(torn) {
            log::debug!("cut {}: {error}", self.name);
        }
    }

    /// As if the disk were full when so many bytes are there.
    #[cfg(test)]
    pub(super) const fn fill_up_at(&mut self, bytes: u64) {
        self.writer.room = Some(bytes);
    }

    /// Characters per line, if it is a terminal.
    pub(super) const fn width(&self) -> Option<usize> {
        self.width
    }

    /// Who must read it, if anybody.
    pub(super) fn reader(&self) -> Option<Reader> {
        Reader::of(&self.writer.file)
    }

    /// Whether somebody watches.
    pub(super) const fn is_terminal(&self) -> bool {
        self.width.is_some()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        self.accepted += bytes.len() as u64;
        if self.buffer.len() >= Self::ROOM {
            self.write_out()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_out()?;
        self.settle();
        Ok(())
    }
}

impl Drop for Output {
    /// What an error elsewhere has left.
    fn drop(&mut self) {
        let _full = self.write_out();
    }
}

/// A file whose reader may be slow, or have stopped: it is waited for, but not when the program is to end.
struct Patient {
    file: File,
    /// Whether somebody must read what is written: a pipe, a terminal, a socket.
    has_reader: bool,
    has_given_up: bool,
    /// Bytes that were written.
    written: u64,
    /// Nothing may follow.
    is_at_end: bool,
    /// A disk that is full after so many bytes.
    #[cfg(test)]
    room: Option<u64>,
}

impl Patient {
    /// A write of so much does not wait where poll(2) says that there is room (`PIPE_BUF`).
    const AT_ONCE: usize = 4096;
    /// How often it is asked whether the program is to end.
    const LOOK: Duration = Duration::from_millis(100);
    /// How long a reader may take nothing once it is.
    const GRACE: Duration = Duration::from_secs(1);

    fn new(file: File) -> Self {
        Self {
            has_reader: has_reader(&file),
            file,
            has_given_up: false,
            written: 0,
            is_at_end: false,
            #[cfg(test)]
            room: None,
        }
    }

    /// Fails if the reader has gone, although there is nothing to write.
    fn check(&self) -> io::Result<()> {
        if self.has_reader && has_lost_reader(&self.file) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    /// Writes nothing more, and takes back the last bytes of a file that nobody else writes to.
    fn end(&mut self, torn: u64) -> io::Result<()> {
        self.is_at_end = true;
        let data = self.file.metadata()?;
        if torn == 0 || !data.is_file() || self.file.stream_position()? != data.len() {
            return Ok(());
        }
        let kept = data.len().saturating_sub(torn);
        self.file.set_len(kept)?;
        self.file.seek(SeekFrom::Start(kept))?;
        Ok(())
    }

    /// Waits until there is room.
    fn await_room(&mut self) -> io::Result<()> {
        let mut waited = Duration::ZERO;
        while !self.has_given_up {
            let mut room = [PollFd::new(&self.file, PollFlags::OUT)];
            let look = Timespec::try_from(Self::LOOK).ok();
            match poll(&mut room, look.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            if signals::has_come() {
                signals::second_kills();
                waited += Self::LOOK;
                self.has_given_up = waited > Self::GRACE;
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "its reader takes nothing",
        ))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_at_end {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut length = bytes.len();
        if self.has_reader {
            self.await_room()?;
            length = length.min(Self::AT_ONCE);
        }
        #[cfg(test)]
        if let Some(room) = self.room {
            let left = usize::try_from(room.saturating_sub(self.written)).unwrap_or(0);
            length = length.min(left);
            if length == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let count = self.file.write(&bytes[..length])?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why which output could not be written.
#[derive(Debug)]
struct Failure {
    name: String,
    source: io::Error,
}

impl Failure {
    /// An error of the same kind, that names the output.
    fn of(name: &str, source: io::Error) -> io::Error {
        let name = name.to_owned();
        io::Error::new(source.kind(), Self { name, source })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {}", self.name)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Whoever reads what is written.
#[derive(Debug)]
pub(super) struct Reader {
    /// Our end of it.
    end: File,
}

impl Reader {
    /// That of a pipe, a terminal or a socket: a file needs none.
    pub(super) fn of(file: &File) -> Option<Self> {
        let end = has_reader(file).then(|| file.try_clone().ok());
        end.flatten().map(|end| Self { end })
    }

    /// That of standard output.
    pub(super) fn of_stdout() -> Option<Self> {
        let end = io::stdout().as_fd().try_clone_to_owned().ok()?;
        Self::of(&File::from(end))
    }

    /// Whether nobody can read any more what is written.
    pub(super) fn has_gone(&self) -> bool {
        has_lost_reader(&self.end)
    }
}

/// Whether somebody must read what is written: it is a pipe, a terminal, or a socket.
fn has_reader(file: &File) -> bool {
    let kind = file.metadata().map(|data| data.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket()) || file.is_terminal()
}

/// Whether nobody reads any more what is written to a pipe, a socket or a terminal.
fn has_lost_reader(file: &File) -> bool {
    let mut ends = [PollFd::new(&file, PollFlags::empty())];
    let at_once = Timespec::default();
    let lost = PollFlags::ERR | PollFlags::HUP;
    poll(&mut ends, Some(&at_once)).is_ok() && ends[0].revents().intersects(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::{fd::OwnedFd, unix::net::UnixStream};

    #[test]
    fn a_file_that_somebody_else_made_is_not_written() {
        if !geteuid().is_root() {
            println!("SKIP this needs root");
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "theirs").unwrap();
        assert!(create(file.path()).is_ok());
        fs::write(file.path(), "theirs").unwrap();
        std::os::unix::fs::chown(file.path(), Some(65_534), None).unwrap();
        let error = create(file.path()).unwrap_err().to_string();
        assert!(
            error.contains("belongs to another user (uid 65534)"),
            "{error}"
        );
        assert_eq!(fs::read(file.path()).unwrap(), b"theirs");
    }

    #[test]
    fn a_reader_that_has_gone_is_noticed_without_a_write() {
        fn watch(reader: impl Into<OwnedFd>, writer: impl Into<OwnedFd>) {
            let mut out = Output::of(File::from(writer.into()), "x".to_owned(), None);
            let seen = out.reader().unwrap();
            assert!(out.flush().is_ok() && !seen.has_gone());
            drop(reader.into());
            assert!(seen.has_gone());
            assert_eq!(out.flush().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
        let (reader, writer) = io::pipe().unwrap();
        watch(reader, writer);
        let (reader, writer) = UnixStream::pair().unwrap();
        watch(reader, writer);
        let file = tempfile::tempfile().unwrap();
        assert!(Reader::of(&file).is_none());
    }

    #[test]
    fn what_the_shell_has_opened_is_written() {
        use std::{io::Read, os::fd::AsRawFd};
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/dev/fd/{}", writer.as_raw_fd());
        let mut out = Output::open(Some(Path::new(&path))).unwrap();
        writeln!(out, "drops").unwrap();
        out.flush().unwrap();
        drop((out, writer));
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "drops\n");
        // A link by anybody else is not followed.
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/fd/1", &link).unwrap();
        assert!(create(&link).is_err());
    }

    #[test]
    fn a_file_is_the_same_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        assert!(is_same_file(&a, &a));
        assert!(!is_same_file(&a, &b));
        fs::write(&a, "").unwrap();
        fs::hard_link(&a, &b).unwrap();
        assert!(is_same_file(&a, &b));
        assert!(!is_same_file(Path::new("/dev/null"), &b));
    }

    #[test]
    fn only_what_waits_is_taken_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut out = Output::open(Some(file.path())).unwrap();
        out.write_all(b"head\n").unwrap();
        out.flush().unwrap();
        for line in ["a\n", "b\n", "c\n"] {
            out.write_all(line.as_bytes()).unwrap();
            out.end_record();
        }
        out.keep(2);
        out.flush().unwrap();
        assert_eq!(out.records(), 2);
        out.keep(1);
        out.write_all(b"rest").unwrap();
        out.keep(2);
        out.flush().unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"head\na\nb\n");
    }

    #[test]
    fn a_full_disk_names_the_file() {
        let mut out = Output::open(Some(Path::new("/dev/full"))).unwrap();
        out.write_all(b"x").unwrap();
        let error = out.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let error = format!("{:#}", anyhow::Error::new(error));
        assert!(
            error.starts_with("write /dev/full: No space left"),
            "{error}"
        );
    }
}
