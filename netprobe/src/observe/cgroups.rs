//! Ids of control groups (version 2), as the kernel gives them to programs.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Where version 2 may be mounted.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Groups below one that are looked at.
const MOST: usize = 4000;

/// The ids of the group at `path` and of all below it, as they are now.
pub fn below(path: &str) -> Result<Vec<u64>, String> {
    let root = ROOTS
        .iter()
        .map(Path::new)
        .find(|root| root.join("cgroup.controllers").exists())
        .ok_or("cgroup version 2 is not mounted")?;
    let relative = Path::new(path);
    let relative = relative.strip_prefix(root).unwrap_or(relative);
    let group = root.join(relative.strip_prefix("/").unwrap_or(relative));
    let mut waiting: Vec<PathBuf> = vec![group];
    let mut ids = Vec::new();
    while let Some(group) = waiting.pop() {
        let seen = fs::metadata(&group).map_err(|error| error.to_string());
        match seen {
            Ok(metadata) => ids.push(metadata.ino()),
            Err(error) if ids.is_empty() => return Err(error),
            // It ended while we looked.
            Err(_) => continue,
        }
        if ids.len() > MOST {
            return Err(format!("there are more than {MOST} groups below it"));
        }
        let folders = fs::read_dir(&group).into_iter().flatten().flatten();
        waiting.extend(
            folders
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(ids)
}
