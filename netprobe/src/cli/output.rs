//! Where the output goes: standard output, or the file of `-o`.

use std::{
    error::Error,
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufWriter, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Result;

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

fn open(path: &Path, truncate: bool) -> Result<File> {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(truncate)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let why = |error: &io::Error| match error.raw_os_error() {
        Some(libc::ELOOP) => format!(
            "write {}: it is a symbolic link, name the file itself",
            path.display()
        ),
        _ => format!("write {}", path.display()),
    };
    opened.map_err(|error| {
        let why = why(&error);
        anyhow::Error::new(error).context(why)
    })
}

/// The output of a command.
pub(super) struct Output {
    writer: BufWriter<Box<dyn Write>>,
    name: String,
    width: Option<usize>,
}

impl Output {
    /// A file that is written anew, or standard output for none and for `-`.
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            return Ok(Self::stdout());
        };
        let file = create(path)?;
        Ok(Self {
            writer: BufWriter::with_capacity(1 << 16, Box::new(file)),
            name: path.display().to_string(),
            width: None,
        })
    }

    fn stdout() -> Self {
        let out = io::stdout();
        let width = out
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(&out).ok())
            .flatten()
            .map(|size| usize::from(size.ws_col));
        Self {
            writer: BufWriter::with_capacity(1 << 16, Box::new(out)),
            name: "standard output".to_owned(),
            width,
        }
    }

    /// Characters per line, if it is a terminal.
    pub(super) const fn width(&self) -> Option<usize> {
        self.width
    }

    /// Whether somebody watches.
    pub(super) const fn is_terminal(&self) -> bool {
        self.width.is_some()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes);
        written.map_err(|error| Failure::of(&self.name, error))
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        flushed.map_err(|error| Failure::of(&self.name, error))
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

#[cfg(test)]
mod tests {
    use super::*;

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
