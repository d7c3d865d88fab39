//! BPF objects that a process holds, and whether they are still in the kernel.

use std::{collections::BTreeSet, fs, process::id};

/// `bpf(2)` commands that turn an id into a file descriptor.
const PROG_GET_FD_BY_ID: i64 = 13;
const MAP_GET_FD_BY_ID: i64 = 14;
const LINK_GET_FD_BY_ID: i64 = 30;

/// A program, map or link, by its kind and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    command: i64,
    id: u32,
}

/// All that the process `pid` holds open.
pub fn held_by(pid: u32) -> BTreeSet<Object> {
    let mut objects = BTreeSet::new();
    let folder = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&folder).expect("list the files of the process") {
        let path = entry.expect("list the files of the process").path();
        // A file may be closed while we look.
        let text = fs::read_to_string(path).unwrap_or_default();
        objects.extend(text.lines().filter_map(object));
    }
    objects
}

fn object(line: &str) -> Option<Object> {
    let (key, value) = line.split_once(':')?;
    let command = match key {
        "prog_id" => PROG_GET_FD_BY_ID,
        "map_id" => MAP_GET_FD_BY_ID,
        "link_id" => LINK_GET_FD_BY_ID,
        _ => return None,
    };
    let id = value.trim().parse().ok()?;
    Some(Object { command, id })
}

impl Object {
    /// Whether the kernel still has it.
    pub fn exists(self) -> bool {
        let mut attributes = [0_u8; 64];
        attributes[..4].copy_from_slice(&self.id.to_ne_bytes());
        // SAFETY: `attributes` is as long as it is said to be, and the call only reads it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                self.command,
                attributes.as_ptr(),
                attributes.len(),
            )
        };
        if fd < 0 {
            let why = std::io::Error::last_os_error();
            assert_eq!(
                why.raw_os_error(),
                Some(libc::ENOENT),
                "{self:?} of {}",
                id()
            );
            return false;
        }
        let fd = i32::try_from(fd).expect("a file descriptor is a small number");
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        unsafe { libc::close(fd) };
        true
    }
}

/// Names of probes in tracefs, which outlive their maker; empty where there is no tracefs.
pub fn trace_events() -> BTreeSet<String> {
    let paths = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let read = |file: &str| {
        let texts = paths.map(|path| fs::read_to_string(format!("{path}/{file}")));
        texts.into_iter().flatten().collect::<String>()
    };
    let events = read("kprobe_events") + &read("uprobe_events");
    events.lines().map(str::to_owned).collect()
}
