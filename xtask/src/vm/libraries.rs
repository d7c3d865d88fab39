//! The shared libraries that a program needs, found by asking the dynamic loader of this machine.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Every file that the loader maps for these programs; what is static or no program needs none.
pub(crate) fn closure(programs: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for program in programs {
        if is_elf(program)? {
            libraries.extend(needed(program)?);
        }
    }
    libraries.sort();
    libraries.dedup();
    Ok(libraries)
}

fn is_elf(file: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let mut file_opened = File::open(file).with_context(|| format!("open {}", file.display()))?;
    Ok(file_opened.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF")
}

fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("=> not found")) {
        bail!("{} needs a missing library:{missing}", program.display());
    }
    Ok(parse(&text))
}

/// Reads `name => /path (0x…)` and `/path (0x…)`; a line without a path is the kernel's own.
fn parse(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            path.starts_with('/')
                .then(|| path.split_whitespace().next())?
                .map(PathBuf::from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(parse(text), expected.map(PathBuf::from));
        assert_eq!(parse("\tnot a dynamic executable\n"), Vec::<PathBuf>::new());
    }
}
