//! Every network namespace of the machine, found through processes and named namespaces, and a
//! thread that looks into one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::PathBuf,
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use netprobe_common::{config::PidNamespace, record::Plain};
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

/// The pid namespace of this process; zeroes if that is the initial one, or not known.
pub fn own_pid_namespace() -> PidNamespace {
    /// `PROC_PID_INIT_INO`, `include/linux/proc_ns.h`.
    const INITIAL: u32 = 0xefff_fffc;
    let own = fs::metadata("/proc/self/ns/pid").ok().and_then(|file| {
        Some(PidNamespace {
            device: file.dev().try_into().ok()?,
            inode: file.ino().try_into().ok()?,
        })
    });
    own.filter(|own| own.inode != INITIAL)
        .unwrap_or_else(PidNamespace::zeroed)
}

/// The network namespace with this inode number, also if nothing but an open file or a single
/// thread keeps it.
pub fn find(inode: u32) -> Result<Namespace> {
    let known = all()?
        .into_iter()
        .find(|namespace| namespace.inode == inode);
    if let Some(known) = known {
        return Ok(known);
    }
    let wanted = format!("net:[{inode}]");
    let processes = fs::read_dir("/proc").context("list processes")?.flatten();
    let places = processes.flat_map(|process| {
        let files = fs::read_dir(process.path().join("fd"));
        let tasks = fs::read_dir(process.path().join("task"));
        let files = files.into_iter().flatten().flatten();
        let tasks = tasks.into_iter().flatten().flatten();
        files
            .map(|file| file.path())
            .chain(tasks.map(|task| task.path().join("ns/net")))
    });
    let is_wanted = |place: &PathBuf| {
        fs::read_link(place).is_ok_and(|target| target.as_os_str() == wanted.as_str())
    };
    for place in places.filter(is_wanted) {
        // It may be closed meanwhile, and its place taken by another.
        if let Ok(file) = File::open(place)
            && self::inode(file.metadata()) == Some(inode)
        {
            return Ok(Namespace {
                inode,
                name: None,
                is_initial: false,
                file,
            });
        }
    }
    bail!("network namespace {inode} is kept by nothing that can be found")
}

/// Files that are mounted to keep network namespaces, as container engines do.
pub(crate) fn mounts(mountinfo: &str) -> Vec<String> {
    let lines = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let root = fields.nth(3)?;
        root.starts_with("net:[").then(|| fields.next()).flatten()
    });
    lines.map(str::to_owned).collect()
}

/// Every network namespace that some process is in, or that has a name.
pub fn all() -> Result<Vec<Namespace>> {
    let mut found = BTreeMap::new();
    // Those that there is no room to open would be missed without a word.
    let mut too_many = None;
    let mut keep = |path: PathBuf, name: Option<String>| {
        // To open one takes longer than to look at it, and most processes share a few.
        let is_known = inode(fs::metadata(&path)).is_some_and(|inode| found.contains_key(&inode));
        if is_known {
            return;
        }
        let file = match File::open(path) {
            Ok(file) => file,
            // A process may have ended meanwhile, or be a zombie.
            Err(error) => {
                if error.raw_os_error() == Some(libc::EMFILE) {
                    too_many = Some(error);
                }
                return;
            }
        };
        if let Some(inode) = inode(file.metadata()) {
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
        keep(entry.path(), Some(name));
    }
    for path in mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()) {
        keep(path.into(), None);
    }
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        if entry.file_name().as_encoded_bytes()[0].is_ascii_digit() {
            keep(entry.path().join("ns/net"), None);
        }
    }
    if let Some(error) = too_many {
        return Err(error).context("open the network namespaces");
    }
    let initial = fs::metadata("/proc/1/ns/net")
        // Not everybody may look at process 1; netprobe is in its namespace, as a rule.
        .or_else(|_hidden| fs::metadata("/proc/self/ns/net"))
        .map(|metadata| metadata.ino());
    let mut namespaces: Vec<Namespace> = found.into_values().collect();
    for namespace in &mut namespaces {
        namespace.is_initial =
            matches!(&initial, Ok(inode) if *inode == u64::from(namespace.inode));
    }
    Ok(namespaces)
}

fn inode(metadata: io::Result<fs::Metadata>) -> Option<u32> {
    metadata.ok()?.ino().try_into().ok()
}

/// A process in each of these network namespaces: one of `wanted` if it is there, or else the one with the lowest id.
pub fn processes(namespaces: &[u32], wanted: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
    let mut found = BTreeMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
        let place = inode(fs::metadata(entry.path().join("ns/net")));
        let Some((pid, place)) = pid.zip(place.filter(|place| namespaces.contains(place))) else {
            continue;
        };
        let known = found.entry(place).or_insert(pid);
        let order = |pid: &u32| (!wanted.contains(pid), *pid);
        if order(&pid) < order(known) {
            *known = pid;
        }
    }
    found
}

/// Whether processes are in network namespaces that cannot be told, as we may not look at them.
pub fn are_hidden() -> bool {
    let is_denied = |path: PathBuf| {
        let looked = fs::metadata(path.join("ns/net"));
        looked.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    let mut processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    // Where /proc shows everybody his own processes only (hidepid), that of process 1 is not there.
    !fs::exists("/proc/1").unwrap_or(false) || processes.any(|process| is_denied(process.path()))
}

/// Moves this thread into the namespace, for good.
pub fn enter(namespace: &Namespace) -> Result<()> {
    let moved = move_into_link_name_space(namespace.file.as_fd(), Some(LinkNameSpaceType::Network));
    moved
        // To stay where it is a thread needs no privileges.
        .or_else(|error| {
            if is_here(namespace) {
                Ok(())
            } else {
                Err(error)
            }
        })
        .with_context(|| format!("enter network namespace {}", namespace.inode))
}

/// Whether this thread is in the namespace.
fn is_here(namespace: &Namespace) -> bool {
    inode(fs::metadata("/proc/thread-self/ns/net")) == Some(namespace.inode)
}

/// Threads that look into namespaces at a time, and namespaces that are worth one.
const MOST_THREADS: usize = 4;
const WORTH_A_THREAD: usize = 32;
/// What fails where there are too many threads already.
const START: &str = "start a thread (`ulimit -u`, TasksMax= of a unit)";

/// Runs `work` in each namespace, where there are many on several CPUs: who has pressed Ctrl-C waits for it. Only a
/// thread can be moved, and it stays where it is: so they are ones that end.
pub fn in_each<T: Send>(
    namespaces: &[Namespace],
    work: impl Fn(&Namespace) -> T + Sync,
) -> Result<Vec<Result<T>>> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let threads = namespaces.len().div_ceil(WORTH_A_THREAD);
    let threads = threads.clamp(1, cpus.min(MOST_THREADS));
    let look = |part: &[Namespace]| -> Vec<Result<T>> {
        let each = part.iter();
        each.map(|namespace| enter(namespace).map(|()| work(namespace)))
            .collect()
    };
    thread::scope(|scope| {
        let parts = namespaces.chunks(namespaces.len().div_ceil(threads).max(1));
        let look = &look;
        let worker = |part| thread::Builder::new().spawn_scoped(scope, move || look(part));
        let workers: Vec<_> = parts
            .map(worker)
            .collect::<io::Result<_>>()
            .context(START)?;
        let mut seen = Vec::with_capacity(namespaces.len());
        for worker in workers {
            let part = worker
                .join()
                .map_err(|_panic| anyhow!("the thread that looks into namespaces has failed"))?;
            seen.extend(part);
        }
        Ok(seen)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_found() {
        let text = "410 29 0:4 net:[4026532245] /run/docker/netns/abc rw shared:1 - nsfs nsfs rw\n\
                    411 29 0:4 mnt:[4026532246] /run/x rw - nsfs nsfs rw\n29 1 8:1 / / rw - ext4 a rw\nx\n";
        assert_eq!(mounts(text), ["/run/docker/netns/abc"]);
    }

    #[test]
    fn a_thread_may_stay_where_it_is_without_privileges() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let mut all = all().unwrap();
        all.retain(|namespace| u64::from(namespace.inode) == own);
        thread::spawn(move || {
            let admin = caps::Capability::CAP_SYS_ADMIN;
            caps::drop(None, caps::CapSet::Effective, admin).unwrap();
            enter(&all[0]).unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_process_that_is_wanted_comes_before_others_of_its_namespace() {
        let own = inode(fs::metadata("/proc/self/ns/net")).unwrap();
        let pid = std::process::id();
        let wanted = BTreeSet::from([pid]);
        assert_eq!(processes(&[own], &wanted), [(own, pid)].into());
        assert!(processes(&[own], &BTreeSet::new())[&own] <= pid);
        assert_eq!(processes(&[], &wanted), BTreeMap::new());
    }

    #[test]
    fn many_namespaces_are_looked_into_in_their_order() {
        let own = u64::from(inode(fs::metadata("/proc/self/ns/net")).unwrap());
        let namespaces: Vec<Namespace> = (0..100)
            .map(|number| Namespace {
                inode: own.try_into().unwrap(),
                name: Some(number.to_string()),
                is_initial: false,
                file: File::open("/proc/self/ns/net").unwrap(),
            })
            .collect();
        let seen = in_each(&namespaces, |namespace| namespace.name.clone()).unwrap();
        let seen: Vec<String> = seen
            .into_iter()
            .map(|name| name.unwrap().unwrap())
            .collect();
        let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(seen, expected);
        assert!(in_each(&[], |_| ()).unwrap().is_empty());
    }

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
