//! Whether we may do what we are about to do, asked before the kernel answers with EPERM.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use caps::{CapSet, Capability};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::release;

/// Why this environment cannot run what was asked; the program ends with exit code 3.
#[derive(Debug)]
pub struct CannotRun {
    why: String,
}

impl CannotRun {
    /// A reason that names the next step.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for CannotRun {}

/// Checks what can be checked without loading anything, and has as many files open as may be.
pub fn check() -> Result<(), CannotRun> {
    check_proc(Path::new("/proc/self/stat"))?;
    raise_open_files();
    check_open_files(getrlimit(Resource::Nofile).current)?;
    check_memory(|resource| getrlimit(resource).current)?;
    check_threads(MOST_THREADS, thread::Builder::spawn)?;
    check_capabilities()?;
    check_btf()?;
    check_lockdown()
}

/// Nearly all that is known of processes and of the kernel is read there.
fn check_proc(own: &Path) -> Result<(), CannotRun> {
    if own.exists() {
        return Ok(());
    }
    Err(CannotRun::new(
        "/proc is not mounted: mount -t proc proc /proc",
    ))
}

/// Whether this thread has a capability.
pub(super) fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// Whether the kernel did not permit it.
pub(super) fn is_refused(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let errno = cause.downcast_ref::<io::Error>();
        errno.is_some_and(|errno| errno.kind() == io::ErrorKind::PermissionDenied)
    })
}

/// Those of some capabilities that this thread does not have, in words: "CAP_X and CAP_Y".
pub fn lacking(capabilities: &[Capability]) -> Option<String> {
    let lacking = capabilities.iter().filter(|capability| !has(**capability));
    let names: Vec<String> = lacking.map(ToString::to_string).collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

/// Without so many open files not even signals can be listened to.
const LEAST_FILES: u64 = 32;

/// Allows this process as many open files as it may allow itself: each network namespace that is looked into is one, and
/// so is each program.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("RLIMIT_NOFILE stays as it is: {error}");
    }
}

fn check_open_files(limit: Option<u64>) -> Result<(), CannotRun> {
    match limit {
        Some(limit) if limit < LEAST_FILES => Err(too_few_files(limit)),
        _ => Ok(()),
    }
}

/// What to say where the limit of open files was hit.
fn too_few_files(limit: u64) -> CannotRun {
    CannotRun::new(format!(
        "only {limit} files may be open at a time, which are too few: raise the limit (`ulimit -n 4096`, LimitNOFILE= of \
         a unit)"
    ))
}

/// Whether it failed for want of open files, and what to say then.
pub fn out_of_files(error: &anyhow::Error) -> Option<CannotRun> {
    let is_emfile = |cause: &(dyn std::error::Error + 'static)| {
        let of_system = cause.downcast_ref::<io::Error>();
        of_system.is_some_and(|error| error.raw_os_error() == Some(libc::EMFILE))
            || cause.downcast_ref() == Some(&Errno::MFILE)
    };
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    error.chain().any(is_emfile).then(|| too_few_files(limit))
}

/// Bytes of addresses (`RLIMIT_AS`) that are always enough: 48 MiB are used, and the allocator sets 64 MiB aside for each
/// of the first threads, whether or not the rest is enough then.
const LEAST_ADDRESSES: u64 = 256 << 20;
/// Bytes of own memory (`RLIMIT_DATA`) of which the largest graph takes a half.
const LEAST_MEMORY: u64 = 64 << 20;

/// Without memory the program would end in the middle.
fn check_memory(limit: impl Fn(Resource) -> Option<u64>) -> Result<(), CannotRun> {
    for (resource, least, option, setting) in [
        (Resource::As, LEAST_ADDRESSES, 'v', "LimitAS="),
        (Resource::Data, LEAST_MEMORY, 'd', "LimitDATA="),
    ] {
        if let Some(limit) = limit(resource).filter(|limit| *limit < least) {
            return Err(CannotRun::new(format!(
                "only {} KiB of memory may be taken, which is too little: raise the limit to {} KiB or more (`ulimit \
                 -{option} unlimited`, {setting} of a unit)",
                limit >> 10,
                least >> 10
            )));
        }
    }
    Ok(())
}

/// Threads and processes that a run has at a time beside the first: those that keep the programs, look into namespaces,
/// learn owners and ask for names.
const MOST_THREADS: usize = 8;

/// Starts so many threads with `start`, for a moment: where one cannot be started later, the run would end in the middle.
fn check_threads(
    count: usize,
    start: impl Fn(thread::Builder, Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
) -> Result<(), CannotRun> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let wait = || {
        let gate = Arc::clone(&gate);
        Box::new(move || drop(gate.lock()))
    };
    let threads: Vec<_> = (0..count)
        .map_while(|_| start(thread::Builder::new(), wait()).ok())
        .collect();
    drop(closed);
    let started = threads.len();
    for thread in threads {
        if thread.join().is_err() {
            log::debug!("a thread that waited has failed");
        }
    }
    if started == count {
        return Ok(());
    }
    Err(CannotRun::new(format!(
        "only {started} of the {count} threads that are needed can be started; raise the limit (`ulimit -u`, TasksMax= of a \
         unit, pids.max of a cgroup)"
    )))
}

/// Before 5.8 all of BPF was `CAP_SYS_ADMIN`, which still includes the finer ones.
fn check_capabilities() -> Result<(), CannotRun> {
    if has(Capability::CAP_SYS_ADMIN) {
        return Ok(());
    }
    for (capability, use_of_it) in [
        (Capability::CAP_BPF, "loads the programs"),
        (Capability::CAP_PERFMON, "attaches them"),
    ] {
        if !has(capability) {
            let advice = advice(rustix::process::geteuid().is_root());
            return Err(CannotRun::new(format!(
                "needs {capability}, which {use_of_it}: {advice}"
            )));
        }
    }
    Ok(())
}

/// Where the capabilities come from.
const fn advice(is_root: bool) -> &'static str {
    if is_root {
        "this root has had it taken away, as in a container: grant CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN (--cap-add, \
         --privileged)"
    } else {
        "run it as root, with sudo"
    }
}

fn check_btf() -> Result<(), CannotRun> {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    if fs::exists(BTF).unwrap_or(false) {
        return Ok(());
    }
    Err(CannotRun::new(format!(
        "{BTF} is missing: mount sysfs, or boot a kernel with CONFIG_DEBUG_INFO_BTF (5.10 or later)"
    )))
}

fn check_lockdown() -> Result<(), CannotRun> {
    let state = fs::read_to_string("/sys/kernel/security/lockdown");
    if is_confidential(state.ok().as_deref(), may_read_memory) {
        return Err(CannotRun::new(
            "kernel lockdown is in confidentiality mode, in which BPF may not read kernel memory: \
             boot with lockdown=integrity or none",
        ));
    }
    Ok(())
}

/// Whether lockdown forbids programs to read memory of the kernel: by its state, or where securityfs is not mounted, as in
/// containers, by what the kernel says to a program that does.
fn is_confidential(state: Option<&str>, may_read: impl FnOnce() -> Option<bool>) -> bool {
    match state {
        Some(state) => state.contains("[confidentiality]"),
        None => may_read() == Some(false),
    }
}

/// Whether the kernel lets programs read its memory, as all do from 5.5 on that are not locked down; `None` if nobody can
/// say, because it lets us load no program at all.
fn may_read_memory() -> Option<bool> {
    let may = |helper| {
        let answer = is_helper_supported(ProgramType::RawTracePoint, helper);
        let answer = answer.inspect_err(|error| log::debug!("ask for {helper:?}: {error}"));
        answer.ok()
    };
    may(BpfHelper::BPF_FUNC_ktime_get_ns).filter(|may_load| *may_load)?;
    may(BpfHelper::BPF_FUNC_probe_read_kernel)
}

/// The reason instead of an error if the kernel refused to make a map: whichever of our maps it was tells nobody anything.
pub fn explain(error: anyhow::Error) -> anyhow::Error {
    explain_by(error, why_no_maps)
}

fn explain_by(error: anyhow::Error, why: impl FnOnce() -> Option<CannotRun>) -> anyhow::Error {
    match is_refused(&error).then(why).flatten() {
        Some(why) => {
            log::debug!("{error:#}");
            why.into()
        }
        None => error,
    }
}

/// Why the kernel lets us make no maps, where that can be known.
fn why_no_maps() -> Option<CannotRun> {
    let namespace = fs::metadata("/proc/self/ns/user").map(|data| data.ino());
    if namespace.is_ok_and(|inode| inode != INITIAL_USER_NAMESPACE) {
        return Some(CannotRun::new(
            "this is a user namespace (a rootless container, unshare -U), in which CAP_BPF counts for nothing: run it \
             outside, as root of the host",
        ));
    }
    let limit = getrlimit(Resource::Memlock).current?;
    counts_as_locked(&release()).then(|| {
        CannotRun::new(format!(
            "this kernel counts BPF maps as locked memory, of which the limit allows {} KiB \
             (memlock): run `ulimit -l unlimited` first, or with CAP_SYS_RESOURCE",
            limit >> 10
        ))
    })
}

/// Why the kernel does not let us sample, or watch functions by breakpoint: we would not be here without `CAP_PERFMON`.
pub(super) fn why_no_perf_events() -> String {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok();
    let paranoid = paranoid.and_then(|text| text.trim().parse().ok());
    refuses_perf_events(paranoid, has(Capability::CAP_SYS_ADMIN))
}

fn refuses_perf_events(paranoid: Option<i32>, is_admin: bool) -> String {
    match paranoid {
        // Of Debian, Ubuntu and Android: upstream the setting ends at 2.
        Some(level @ 3..) if !is_admin => format!(
            "kernel.perf_event_paranoid is {level}: this kernel lets only CAP_SYS_ADMIN sample, and watch functions by \
             kprobe: run it as root, or set it to 2"
        ),
        _ => {
            "perf_event_open is refused here: by seccomp, as in containers, or by a security module"
                .to_owned()
        }
    }
}

/// `PROC_USER_INIT_INO`.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether the memory of maps is locked memory of the user: before 5.11.
fn counts_as_locked(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (5, 11),
        _ => true,
    }
}

/// What is still needed once the programs are attached.
const KEPT: [Capability; 8] = [
    // Maps are read and written, and programs attached to modules that are loaded later.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // Before 5.8 it was all of these; today BPF statistics and entering namespaces.
    Capability::CAP_SYS_ADMIN,
    // Owners of sockets are found in `/proc/PID/fd` of everybody.
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    // Addresses in `/proc/kallsyms`.
    Capability::CAP_SYSLOG,
    // Sockets of all users.
    Capability::CAP_NET_ADMIN,
    // The symbol worker opens what others have mapped, and then needs no CAP_SYS_ADMIN for it.
    Capability::CAP_CHECKPOINT_RESTORE,
];

/// What opens the files of other processes: through `/proc/PID/map_files` and `/proc/PID/root`, whoever owns them.
pub const READS_FILES: [Capability; 2] =
    [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

/// Gives up every capability that is not needed once the programs are attached, for this thread and those, and the
/// processes, that it starts from here on: whoever takes us over through hostile input gets no more than we need.
pub fn reduce() {
    reduce_to(&KEPT);
}

/// The same for who only reads what other processes have mapped.
pub fn reduce_to_reading() {
    let opens_mapped = if has(Capability::CAP_CHECKPOINT_RESTORE) {
        Capability::CAP_CHECKPOINT_RESTORE
    } else {
        Capability::CAP_SYS_ADMIN
    };
    let [sees, reads] = READS_FILES;
    reduce_to(&[sees, reads, opens_mapped]);
}

/// The same for a thread that only waits.
pub fn reduce_to_nothing() {
    reduce_to(&[]);
}

fn reduce_to(needed: &[Capability]) {
    if let Err(error) = try_reduce(needed) {
        log::debug!("privileges stay as they are: {error}");
    }
}

fn try_reduce(needed: &[Capability]) -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept = permitted
        .intersection(&needed.iter().copied().collect())
        .copied()
        .collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        log::debug!("programs that we start could gain privileges: {error}");
    }
    Ok(())
}

/// Lifts the limit on locked memory, which BPF maps count against before 5.11.
pub fn lift_memlock() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        log::debug!("RLIMIT_MEMLOCK stays as it is: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paranoid_kernel_is_named_only_where_it_is_the_reason() {
        let refused = refuses_perf_events(Some(3), false);
        assert!(refused.contains("perf_event_paranoid is 3"), "{refused}");
        assert!(refused.contains("CAP_SYS_ADMIN"), "{refused}");
        for (paranoid, is_admin) in [(Some(2), false), (Some(3), true)] {
            let other = refuses_perf_events(paranoid, is_admin);
            assert!(!other.contains("paranoid"), "{other}");
        }
    }

    #[test]
    fn where_there_is_no_proc_it_is_named() {
        assert!(check_proc(Path::new("/proc/self/stat")).is_ok());
        let said = check_proc(Path::new("/nowhere/stat")).unwrap_err();
        assert!(said.to_string().contains("mount -t proc"));
    }

    #[test]
    fn who_reads_mapped_files_keeps_nothing_else() {
        let all = [CapSet::Permitted, CapSet::Effective];
        let kept = thread::spawn(move || {
            reduce_to_reading();
            assert!(rustix::thread::no_new_privs().unwrap());
            all.map(|set| caps::read(None, set).unwrap())
        });
        let mut may_keep = caps::CapsHashSet::from(READS_FILES);
        may_keep.insert(Capability::CAP_CHECKPOINT_RESTORE);
        if !has(Capability::CAP_CHECKPOINT_RESTORE) {
            may_keep.insert(Capability::CAP_SYS_ADMIN);
        }
        for kept in kept.join().unwrap() {
            assert!(kept.is_subset(&may_keep), "{kept:?}");
        }
    }

    #[test]
    fn lockdown_is_recognised_where_its_state_is_not_mounted() {
        let never = || panic!("its state is known");
        assert!(is_confidential(
            Some("none integrity [confidentiality]\n"),
            never
        ));
        assert!(!is_confidential(
            Some("none [integrity] confidentiality\n"),
            never
        ));
        assert!(is_confidential(None, || Some(false)));
        assert!(!is_confidential(None, || Some(true)));
        assert!(!is_confidential(None, || None));
        // No machine that runs tests is locked down so far.
        assert_ne!(may_read_memory(), Some(false));
    }

    #[test]
    fn why_there_are_no_maps_is_told_without_their_names() {
        let refused = || {
            let error: anyhow::Error = io::Error::from(io::ErrorKind::PermissionDenied).into();
            error.context("create the map `SENT`")
        };
        let told = explain_by(refused(), || Some(CannotRun::new("a limit")));
        assert!(told.is::<CannotRun>());
        assert_eq!(format!("{told:#}"), "a limit");
        let told = format!("{:#}", explain_by(refused(), || None));
        assert!(told.contains("`SENT`"), "{told}");
        let other = explain_by(anyhow::anyhow!("no memory"), || {
            panic!("it was not refused")
        });
        assert_eq!(other.to_string(), "no memory");
    }

    #[test]
    fn root_is_not_told_to_become_root() {
        assert!(!advice(true).contains("sudo") && advice(true).contains("CAP_BPF"));
        assert!(advice(false).contains("as root"));
    }

    #[test]
    fn too_few_open_files_are_named_and_nothing_else() {
        let said = check_open_files(Some(8)).unwrap_err().to_string();
        assert!(said.contains("only 8 files") && said.contains("ulimit -n"));
        assert!(check_open_files(Some(1024)).is_ok() && check_open_files(None).is_ok());
        let of_system = io::Error::from_raw_os_error(libc::EMFILE);
        let error = anyhow::Error::new(of_system).context("read the kernel's types");
        assert!(out_of_files(&error).is_some());
        let error = anyhow::Error::new(Errno::MFILE).context("create a memory file");
        assert!(out_of_files(&error).is_some());
        let other = anyhow::Error::new(io::Error::from_raw_os_error(libc::ENOENT));
        assert!(out_of_files(&other).is_none());
    }

    #[test]
    fn too_little_memory_is_told_before_it_runs_out() {
        let check = |wanted: Resource, bytes: u64| {
            check_memory(|resource| (resource == wanted).then_some(bytes))
        };
        let said = check(Resource::As, 20 << 20).unwrap_err().to_string();
        assert!(said.contains("only 20480 KiB") && said.contains("ulimit -v"));
        let said = check(Resource::Data, 20 << 20).unwrap_err().to_string();
        assert!(said.contains("ulimit -d") && said.contains("LimitDATA="));
        assert!(check(Resource::As, 1 << 30).is_ok() && check(Resource::Stack, 1).is_ok());
    }

    #[test]
    fn too_few_threads_are_told_before_they_are_missed() {
        assert!(check_threads(3, thread::Builder::spawn).is_ok());
        let left = std::cell::Cell::new(2);
        let said = check_threads(3, |thread, work| {
            let more = left.get();
            left.set(more.max(1) - 1);
            match more {
                0 => Err(Errno::AGAIN.into()),
                _ => thread.spawn(work),
            }
        });
        let said = said.unwrap_err().to_string();
        assert!(
            said.starts_with("only 2 of the 3 threads") && said.contains("ulimit -u"),
            "{said}"
        );
    }

    #[test]
    fn maps_were_locked_memory_before_5_11() {
        assert!(counts_as_locked("5.10.0-30-amd64"));
        assert!(counts_as_locked("4.19.2"));
        for release in ["5.11.0", "6.1.0-13-amd64", "7.2-rc1"] {
            assert!(!counts_as_locked(release), "{release}");
        }
    }
}
