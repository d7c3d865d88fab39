//! Control groups (version 2): their ids, as the kernel gives them to programs, and their paths.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Where version 2 may be mounted.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// Groups below one that are looked at.
const MOST: usize = 4000;

/// A group that somebody names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id.
    pub id: u64,
    /// Its path from the root, which is `/`.
    pub path: Arc<str>,
}

/// The group that `text` means: its id, or its path with or without the folder that version 2 is
/// mounted at.
pub fn find(text: &str) -> Result<Cgroup, String> {
    if let Ok(id) = text.parse::<u64>() {
        let path = Paths::default().of(id);
        let path = path.ok_or_else(|| format!("no control group has the id {id}"))?;
        return Ok(Cgroup { id, path });
    }
    let root = root()?;
    let group = folder(root, text);
    let seen = fs::metadata(&group).map_err(|why| format!("{}: {why}", group.display()))?;
    if !group.join("cgroup.procs").exists() {
        return Err(format!("{} is no control group", group.display()));
    }
    Ok(Cgroup {
        id: seen.ino(),
        path: path_of(root, &group),
    })
}

/// The path of the group that a process is in.
pub fn of_process(pid: u32) -> Option<Arc<str>> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Arc::from(path))
}

/// Whether sockets may know their class of version 1 instead of their group, on kernels up to 5.15,
/// which have room for one of the two.
pub fn have_classes() -> bool {
    fs::read_to_string("/proc/cgroups").is_ok_and(|groups| has_class(&groups))
}

/// Whether a hierarchy of version 1 has a controller of sockets, in `/proc/cgroups`.
fn has_class(groups: &str) -> bool {
    groups.lines().any(|line| {
        let mut fields = line.split('\t');
        let name = fields.next();
        let is_used = fields.next().is_some_and(|hierarchy| hierarchy != "0");
        is_used && matches!(name, Some("net_cls" | "net_prio"))
    })
}

/// Whether the group at `path` is the one at `root`, or below it.
pub fn is_within(path: &str, root: &str) -> bool {
    let rest = path.strip_prefix(root.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The paths of groups by id, also of those that are gone since they were seen.
#[derive(Debug, Default)]
pub struct Paths {
    paths: HashMap<u64, Arc<str>>,
    looked: Option<Instant>,
}

impl Paths {
    /// How long it is not looked again for one that was not there.
    const HOLDS: Duration = Duration::from_secs(1);

    /// The path of a group; its id in words if nobody knows it, as of one that has ended.
    pub fn name(&mut self, id: u64) -> Arc<str> {
        self.of(id).unwrap_or_else(|| Arc::from(format!("id {id}")))
    }

    /// The path of a group, if it has one.
    pub fn of(&mut self, id: u64) -> Option<Arc<str>> {
        if let Some(path) = self.paths.get(&id) {
            return Some(Arc::clone(path));
        }
        let looked = self.looked;
        if looked.is_none_or(|looked| looked.elapsed() > Self::HOLDS) {
            self.look();
        }
        self.paths.get(&id).map(Arc::clone)
    }

    /// Learns those that are there now.
    pub fn look(&mut self) {
        // A machine that makes a group per job would fill the memory in the end.
        if self.paths.len() > MOST {
            self.paths.clear();
        }
        if let Ok(root) = root() {
            let found = walk(root).unwrap_or_default();
            let paths = found.iter().map(|(path, id)| (*id, path_of(root, path)));
            self.paths.extend(paths);
        }
        self.looked = Some(Instant::now());
    }
}

fn root() -> Result<&'static Path, String> {
    let mut roots = ROOTS.iter().map(Path::new);
    let found = roots.find(|root| root.join("cgroup.controllers").exists());
    found.ok_or_else(|| "cgroup version 2 is not mounted".to_owned())
}

/// The folder of the group that somebody calls `text`.
fn folder(root: &Path, text: &str) -> PathBuf {
    let text = Path::new(text);
    let relative = text.strip_prefix(root).unwrap_or(text);
    root.join(relative.strip_prefix("/").unwrap_or(relative))
}

fn path_of(root: &Path, folder: &Path) -> Arc<str> {
    let relative = folder.strip_prefix(root).unwrap_or(folder);
    let text = relative.to_string_lossy();
    Arc::from(format!("/{}", text.trim_end_matches('/')))
}

/// The ids of the group that `text` means and of all below it, as they are now.
pub fn below(text: &str) -> Result<Vec<u64>, String> {
    let group = find(text)?;
    let found = walk(&folder(root()?, &group.path))?;
    if found.len() > MOST {
        return Err(format!("there are more than {MOST} groups below it"));
    }
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

/// The groups at and below `group` with their ids; one more than [`MOST`] if there are more.
fn walk(group: &Path) -> Result<Vec<(PathBuf, u64)>, String> {
    let mut waiting: Vec<PathBuf> = vec![group.to_owned()];
    let mut found = Vec::new();
    while let Some(group) = waiting.pop() {
        match fs::metadata(&group) {
            Ok(metadata) => found.push((group.clone(), metadata.ino())),
            Err(error) if found.is_empty() => return Err(error.to_string()),
            // It ended while we looked.
            Err(_) => continue,
        }
        if found.len() > MOST {
            break;
        }
        let folders = fs::read_dir(&group).into_iter().flatten().flatten();
        waiting.extend(
            folders
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_contains_itself_and_what_is_below() {
        for (path, root, expected) in [
            ("/a", "/", true),
            ("/", "/", true),
            ("/a/b", "/a", true),
            ("/a", "/a", true),
            ("/ab", "/a", false),
            ("/", "/a", false),
        ] {
            assert_eq!(is_within(path, root), expected, "{path} in {root}");
        }
    }

    #[test]
    fn groups_that_nobody_knows_are_told_apart_and_those_that_have_ended_keep_their_paths() {
        let path: Arc<str> = Arc::from("/ended");
        let mut paths = Paths {
            paths: [(u64::MAX, Arc::clone(&path))].into(),
            looked: None,
        };
        paths.look();
        assert_eq!(paths.name(u64::MAX), path);
        assert_eq!(&*paths.name(u64::MAX - 1), "id 18446744073709551614");
    }

    #[test]
    fn classes_are_in_use_where_version_1_has_their_hierarchy() {
        let head = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t1\t1\n";
        assert!(!has_class(&format!("{head}net_cls\t0\t25\t1\n")));
        assert!(has_class(&format!("{head}net_cls\t7\t1\t1\n")));
        assert!(has_class(&format!("{head}net_prio\t7\t1\t1\n")));
    }

    #[test]
    fn the_mount_point_may_be_left_out() {
        let root = Path::new("/sys/fs/cgroup");
        for text in ["/sys/fs/cgroup/a/b", "/a/b", "a/b"] {
            assert_eq!(
                folder(root, text),
                Path::new("/sys/fs/cgroup/a/b"),
                "{text}"
            );
        }
        assert_eq!(&*path_of(root, &folder(root, "/a/b/")), "/a/b");
        assert_eq!(&*path_of(root, &folder(root, "/")), "/");
    }

    #[test]
    fn the_root_is_found_by_path_and_by_id() {
        let Ok(found) = find("/") else {
            println!("SKIP no cgroup version 2 here");
            return;
        };
        assert_eq!(&*found.path, "/");
        assert_eq!(find(&found.id.to_string()), Ok(found));
        assert!(find("/no/such/group").is_err());
    }
}
