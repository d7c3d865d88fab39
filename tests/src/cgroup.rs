//! Control groups (version 2) of a test's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use crate::{skip::skip, wait_until};

/// Where version 2 may be mounted.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A group, and its folder, which goes with it.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    folder: PathBuf,
}

impl Cgroup {
    /// A new one below the root; none, and said so, where there is no version 2 to make it in.
    pub fn new() -> Option<Self> {
        let mut roots = ROOTS.iter().map(Path::new);
        let Some(root) = roots.find(|root| root.join("cgroup.controllers").exists()) else {
            skip("cgroup version 2 is not mounted");
            return None;
        };
        let folder = root.join(format!("netprobe-test-{}", process::id()));
        if let Err(why) = fs::create_dir(&folder) {
            skip(&format!("{}: {why}", folder.display()));
            return None;
        }
        Some(Self {
            root: root.to_owned(),
            folder,
        })
    }

    /// A new one in this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let folder = self.folder.join(name);
        fs::create_dir(&folder).expect("make a cgroup");
        Self {
            root: self.root.clone(),
            folder,
        }
    }

    /// Its path from the root of version 2.
    pub fn path(&self) -> String {
        let relative = self.folder.strip_prefix(&self.root);
        format!("/{}", relative.expect("it is below the root").display())
    }

    /// Moves this process into it.
    pub fn enter(&self) {
        fs::write(self.folder.join("cgroup.procs"), "0").expect("enter a cgroup");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were killed leave it a little later.
        wait_until(
            "the cgroup was empty",
            || !matches!(fs::remove_dir(&self.folder), Err(why) if why.kind() == io::ErrorKind::ResourceBusy),
        );
    }
}
