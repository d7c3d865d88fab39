//! Every network namespace of the machine, found through processes and named namespaces, and a
//! thread that looks into one after the other.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    thread,
};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where ip-netns(8) keeps namespaces that need not have a process.
const NAMED: &str = "/run/netns";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Its inode number.
    pub inode: u32,
    /// Its name in `ip netns`, if it has one.
    pub name: Option<String>,
    /// Whether it is the one of process 1.
    pub is_initial: bool,
    file: File,
}

/// Every network namespace that some process is in, or that has a name.
pub fn all() -> Result<Vec<Namespace>> {
    let mut found = BTreeMap::new();
    let mut keep = |file: io::Result<File>, name: Option<String>| {
        // A process may have ended meanwhile, or be a zombie.
        let Ok(file) = file else { return };
        let inode = file.metadata().ok().map(|metadata| metadata.ino());
        if let Some(inode) = inode.and_then(|inode| u32::try_from(inode).ok()) {
            let is_initial = false;
            found.entry(inode).or_insert(Namespace {
                inode,
                name,
                is_initial,
                file,
            });
        }
    };
    // The folder is not there before the first namespace is named.
    for entry in fs::read_dir(NAMED).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        keep(File::open(entry.path()), Some(name));
    }
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        if entry.file_name().as_encoded_bytes()[0].is_ascii_digit() {
            keep(File::open(entry.path().join("ns/net")), None);
        }
    }
    let initial = fs::metadata("/proc/1/ns/net").map(|metadata| metadata.ino());
    let mut namespaces: Vec<Namespace> = found.into_values().collect();
    for namespace in &mut namespaces {
        namespace.is_initial =
            matches!(&initial, Ok(inode) if *inode == u64::from(namespace.inode));
    }
    Ok(namespaces)
}

/// Moves this thread into the namespace, for good.
pub fn enter(namespace: &Namespace) -> Result<()> {
    move_into_link_name_space(namespace.file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter network namespace {}", namespace.inode))
}

/// Runs `work` in each namespace in turn. Only a thread can be moved, and it stays where it is: so
/// it is one that ends.
pub fn in_each<T: Send>(
    namespaces: &[Namespace],
    mut work: impl FnMut(&Namespace) -> T + Send,
) -> Result<Vec<Result<T>>> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            namespaces
                .iter()
                .map(|namespace| enter(namespace).map(|()| work(namespace)))
                .collect()
        });
        worker
            .join()
            .map_err(|_panic| anyhow!("the thread that looks into namespaces has failed"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_namespace_is_among_them() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let all = all().unwrap();
        assert!(
            all.iter()
                .any(|namespace| u64::from(namespace.inode) == own)
        );
    }
}
