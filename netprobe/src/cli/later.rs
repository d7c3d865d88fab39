//! Where a graph is written once there is one: until then a file that was there before stays as it is, and one that was
//! not is gone again if nothing comes.

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

use anyhow::{Context, Result};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

use crate::cli::output::{self, Reader};

/// A file that can be written, or standard output.
#[derive(Debug)]
pub(super) struct Later {
    path: PathBuf,
    /// None for standard output.
    file: Option<File>,
    /// The file is ours, and empty.
    is_made: bool,
}

impl Later {
    /// Opens it, so that a mistake in its path shows at once.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self {
                path,
                file: None,
                is_made: false,
            });
        }
        let (file, is_made) = output::reserve(&path)?;
        Ok(Self {
            path,
            file: Some(file),
            is_made,
        })
    }

    /// Who must read it, if anybody.
    pub(super) fn reader(&self) -> Option<Reader> {
        match &self.file {
            Some(file) => Reader::of(file),
            None => Reader::of_stdout(),
        }
    }

    /// Writes what `draw` makes; if it fails, nothing.
    pub(super) fn write(mut self, draw: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let mut bytes = Vec::new();
        let drawn = draw(&mut bytes);
        let written = drawn.and_then(|()| self.replace(&bytes));
        match &self.file {
            Some(_) => written.with_context(|| format!("write {}", self.path.display())),
            // It names itself.
            None => written,
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else {
            return output::print(|out| Ok(out.write_all(bytes)?));
        };
        // Devices and pipes have no length.
        if !file.metadata()?.is_file() {
            return Ok(file.write_all(bytes)?);
        }
        reserve(file, bytes.len() as u64)?;
        self.is_made = false;
        file.write_all(bytes)?;
        Ok(file.set_len(bytes.len() as u64)?)
    }
}

/// Makes sure of the room before what was there is lost; not every file system can.
fn reserve(file: &File, length: u64) -> rustix::io::Result<()> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, 0, length) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        if self.is_made
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(text: &'static str) -> impl FnOnce(&mut dyn Write) -> Result<()> {
        move |out| Ok(out.write_all(text.as_bytes())?)
    }

    #[test]
    fn what_was_there_stays_until_there_is_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.svg");
        fs::write(&path, "a picture that took an hour").unwrap();
        drop(Later::open(path.clone()).unwrap());
        let failed = Later::open(path.clone()).unwrap().write(|out| {
            out.write_all(b"half")?;
            anyhow::bail!("no stacks");
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"a picture that took an hour");
        Later::open(path.clone())
            .unwrap()
            .write(draw("new"))
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_file_that_nothing_was_written_to_is_gone_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.svg");
        drop(Later::open(path.clone()).unwrap());
        assert!(!path.exists());
        Later::open(path.clone())
            .unwrap()
            .write(draw("new"))
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        Later::open("/dev/null".into())
            .unwrap()
            .write(draw("new"))
            .unwrap();
    }
}
