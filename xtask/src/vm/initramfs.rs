//! Builds the whole file system of a test machine: busybox, tools of this machine with their
//! libraries, kernel modules, and the command to run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::modules::Modules;
use super::{Machine, libraries};
use crate::kernels::roots;
use crate::process;

const INIT: &str = include_str!("init.sh");
/// Programs of this machine that are packed, by their names in the other.
const TOOLS: [(&str, &str); 5] = [
    ("ip", "ip"),
    ("nft", "nft"),
    ("ss", "ss"),
    // busybox runs its own applets before anything on PATH: `ip` in its shell, or below its `timeout`,
    // would not be iproute2's.
    ("sh", "dash"),
    ("tc", "tc"),
];
/// The same, packed where this machine has them.
const OPTIONAL: [&str; 9] = [
    "bpftool",
    "conntrack",
    "env",
    "nsenter",
    "nstat",
    "setsid",
    "timeout",
    "unshare",
    "xargs",
];
const DIRECTORIES: [&str; 11] = [
    "/bin",
    "/dev",
    "/etc",
    "/lib",
    "/netprobe",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
];
const LINKS: [(&str, &str); 4] = [
    ("/sbin", "bin"),
    ("/usr/bin", "../bin"),
    ("/usr/sbin", "../bin"),
    ("/var/run", "../run"),
];
/// The few lines of the name databases that programs look into.
const ETC: [(&str, &str); 5] = [
    ("/etc/passwd", "root:x:0:0:root:/tmp:/bin/sh\n"),
    ("/etc/group", "root:x:0:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "/etc/protocols",
        "icmp 1\ntcp 6\nudp 17\nipv6-icmp 58\nsctp 132\n",
    ),
    ("/etc/nsswitch.conf", "passwd: files\nhosts: files\n"),
];

/// Writes the archive for `machine` to `file`.
pub(super) fn write(machine: &Machine, file: &Path) -> Result<()> {
    let out = File::create(file).with_context(|| format!("create {}", file.display()))?;
    let modules = Modules::select(&machine.kernel, &machine.modules)?;
    let mut contents = Contents::default();
    contents.add_tools()?;
    for (host, guest) in &machine.files {
        contents.files.insert(guest.clone(), host.clone());
    }
    contents.add_libraries()?;
    // They have libraries of their own.
    for programs in &machine.programs {
        let root = roots::root(&machine.kernel, *programs)?;
        contents.add_tree(&root, &programs.guest())?;
    }
    contents.add_modules(&modules, &machine.kernel.release()?);
    contents.add_texts(machine);
    let write = || contents.write(Archive::new(BufWriter::new(out)));
    write().with_context(|| format!("write {}", file.display()))
}

/// What goes into the archive, by its path there.
#[derive(Default)]
struct Contents {
    files: BTreeMap<String, PathBuf>,
    links: BTreeMap<String, String>,
    texts: BTreeMap<String, String>,
}

impl Contents {
    fn add_tools(&mut self) -> Result<()> {
        let busybox = find("busybox")?;
        let applets = process::output(Command::new(&busybox).arg("--list"))?;
        for applet in applets.lines() {
            self.links
                .insert(format!("/bin/{applet}"), "busybox".to_owned());
        }
        self.files.insert("/bin/busybox".to_owned(), busybox);
        for (guest, tool) in TOOLS {
            self.files.insert(format!("/bin/{guest}"), find(tool)?);
        }
        for tool in OPTIONAL {
            if let Ok(path) = find(tool) {
                self.files.insert(format!("/bin/{tool}"), path);
            }
        }
        Ok(())
    }

    fn add_libraries(&mut self) -> Result<()> {
        let programs: Vec<_> = self.files.values().map(PathBuf::as_path).collect();
        for library in libraries::closure(&programs)? {
            let guest = library.display().to_string();
            self.files.insert(guest, library);
        }
        Ok(())
    }

    /// Adds the files and the symbolic links below a directory.
    fn add_tree(&mut self, host: &Path, guest: &str) -> Result<()> {
        let entries = fs::read_dir(host).with_context(|| format!("list {}", host.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", host.display()))?;
            let path = entry.path();
            let look = || format!("look at {}", path.display());
            let kind = entry.file_type().with_context(look)?;
            let guest = format!("{guest}/{}", entry.file_name().to_string_lossy());
            if kind.is_dir() {
                self.add_tree(&path, &guest)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).with_context(look)?;
                self.links.insert(guest, target.display().to_string());
            } else if kind.is_file() {
                self.files.insert(guest, path);
            }
        }
        Ok(())
    }

    fn add_modules(&mut self, modules: &Modules, release: &str) {
        let folder = format!("/lib/modules/{release}");
        for (path, host) in modules.files() {
            self.files
                .insert(format!("{folder}/{}", path.display()), host);
        }
        for (name, text) in [
            ("modules.dep", modules.dep()),
            ("modules.alias", modules.alias()),
            ("modules.symbols", String::new()),
        ] {
            self.texts.insert(format!("{folder}/{name}"), text);
        }
    }

    fn add_texts(&mut self, machine: &Machine) {
        let mut add = |path: &str, text: String| self.texts.insert(path.to_owned(), text);
        add("/init", INIT.to_owned());
        let mut modules = machine.modules.join("\n");
        modules.push('\n');
        add("/netprobe/modules", modules);
        let environment = machine.environment.iter();
        let lines = environment.map(|(name, value)| format!("export {name}={}\n", quote(value)));
        add("/netprobe/environment", lines.collect());
        let words: Vec<_> = machine.command.iter().map(|word| quote(word)).collect();
        add("/netprobe/command", format!("exec {}\n", words.join(" ")));
        for (path, text) in ETC {
            add(path, text.to_owned());
        }
    }

    fn write(&self, mut archive: Archive<impl Write>) -> Result<()> {
        for directory in self.directories() {
            archive.directory(&directory)?;
        }
        // The kernel opens the console for the first process before anything is mounted.
        archive.device("/dev/console", 5, 1)?;
        archive.device("/dev/null", 1, 3)?;
        let links = self
            .links
            .iter()
            .map(|(path, to)| (path.as_str(), to.as_str()));
        for (path, target) in links.chain(LINKS) {
            if !self.files.contains_key(path) {
                archive.symlink(path, target)?;
            }
        }
        for (path, text) in &self.texts {
            archive.file(path, text.as_bytes())?;
        }
        for (path, host) in &self.files {
            let data = fs::read(host).with_context(|| format!("read {}", host.display()))?;
            archive.file(path, &data)?;
        }
        archive.finish()?;
        Ok(())
    }

    /// Every directory, parents first.
    fn directories(&self) -> BTreeSet<String> {
        let mut all: BTreeSet<String> = DIRECTORIES.map(str::to_owned).into();
        let entries = self.files.keys().chain(self.texts.keys());
        let paths = entries.chain(self.links.keys());
        let linked = |dir: &&Path| LINKS.iter().any(|(link, _)| Path::new(link) == *dir);
        for dir in paths.flat_map(|path| Path::new(path).ancestors().skip(1)) {
            if dir != Path::new("/") && !linked(&dir) {
                all.insert(dir.display().to_string());
            }
        }
        all
    }
}

fn find(tool: &str) -> Result<PathBuf> {
    process::find(tool).with_context(|| format!("{tool} is missing; run `cargo xtask setup`"))
}

/// A word as the shell reads it back unchanged.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        let words = ["a b", "it's", "$HOME", "*", "", "\"q\"\n"];
        for word in words {
            let script = format!("printf %s {}", quote(word));
            let printed = Command::new("sh")
                .args(["-c", &script])
                .output()
                .expect("sh");
            assert_eq!(String::from_utf8_lossy(&printed.stdout), word);
        }
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut contents = Contents::default();
        contents.texts.insert("/a/b/c".into(), String::new());
        contents.texts.insert("/sbin/x".into(), String::new());
        let all: Vec<_> = contents.directories().into_iter().collect();
        let at = |dir: &str| all.iter().position(|found| found == dir);
        assert!(at("/a").expect("/a") < at("/a/b").expect("/a/b"));
        assert_eq!(at("/sbin"), None, "a link");
    }
}
