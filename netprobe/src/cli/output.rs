//! Where the output goes: standard output, or the file of `-o`.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
};

use anyhow::{Context, Result};

/// The output of a command.
pub(super) struct Output {
    writer: BufWriter<Box<dyn Write>>,
    width: Option<usize>,
}

impl Output {
    /// A file that is written anew, or standard output for none and for `-`.
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            return Ok(Self::stdout());
        };
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        Ok(Self {
            writer: BufWriter::with_capacity(1 << 16, Box::new(file)),
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
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
