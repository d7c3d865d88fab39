//! Network namespaces, by whatever people call them.

use std::{fs, os::unix::fs::MetadataExt};

/// Process ids end here (`PID_MAX_LIMIT`); inode numbers of namespaces begin far above.
const MAX_PID: u64 = 1 << 22;
/// What `statfs` says of files that stand for namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The inode number of the namespace that `text` means: a number above 4194304 itself, a smaller
/// one or `pid:N` as a process in it, a path, or a name of ip-netns(8).
pub fn inode(text: &str) -> Result<u32, String> {
    let number = text.parse::<u64>().ok();
    if let Some(inode) = number.filter(|number| *number > MAX_PID) {
        return u32::try_from(inode)
            .map_err(|_too_large| format!("{inode} is too large for the inode of a namespace"));
    }
    let pid = text.strip_prefix("pid:").map(str::parse::<u64>);
    let pid = match (number, pid) {
        (Some(pid), _) | (None, Some(Ok(pid))) => Some(pid),
        (None, Some(Err(_))) => return Err(format!("`{text}` is no process id")),
        (None, None) => None,
    };
    if let Some(pid) = pid {
        return of_file(&format!("/proc/{pid}/ns/net")).map_err(|why| {
            if fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
                return format!("the namespace of process {pid} may not be read here: {why}");
            }
            format!("no namespace of a process {pid} (inode numbers are above {MAX_PID}): {why}")
        });
    }
    if text.contains('/') {
        return of_file(text);
    }
    if text.is_empty() || text.starts_with('.') {
        return Err(
            "expected an inode number, a process id, a path or a name of `ip netns`".into(),
        );
    }
    of_file(&format!("/run/netns/{text}")).map_err(|why| match names() {
        names if names.is_empty() => format!("{why}; `ip netns` knows no namespace here"),
        names => format!("{why}; `ip netns` knows {}", names.join(", ")),
    })
}

fn of_file(path: &str) -> Result<u32, String> {
    let metadata = fs::metadata(path).map_err(|why| format!("{path}: {why}"))?;
    let is_namespace = rustix::fs::statfs(path).is_ok_and(|about| about.f_type == NSFS_MAGIC);
    // Links in /proc say which kind; files of `ip netns` do not, and are of the right one.
    let link = fs::read_link(path).map(|target| target.to_string_lossy().into_owned());
    let is_other = link.is_ok_and(|link| link.contains(":[") && !link.starts_with("net:["));
    if !is_namespace || is_other {
        return Err(format!("{path} is not a network namespace"));
    }
    u32::try_from(metadata.ino()).map_err(|_too_large| format!("{path}: its inode is too large"))
}

fn names() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .take(10)
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_found_by_every_name() {
        let own = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let pid = std::process::id();
        for text in [
            "/proc/self/ns/net".to_owned(),
            pid.to_string(),
            format!("pid:{pid}"),
            own.to_string(),
        ] {
            assert_eq!(inode(&text), Ok(own), "{text}");
        }
        for wrong in [
            "",
            "..",
            "pid:x",
            "/etc/hostname",
            "/proc/self/ns/mnt",
            "no-such-name",
            "99999999999",
        ] {
            assert!(inode(wrong).is_err(), "{wrong}");
        }
    }
}
