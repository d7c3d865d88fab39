//! What the kernel says about links of ours: how often a kprobe could not run (`nmissed`), which
//! happens when another one was being handled on that CPU. Told from 6.7 on.

use std::{collections::HashMap, fs, os::fd::RawFd};

/// `BPF_OBJ_GET_INFO_BY_FD`
const GET_INFO: libc::c_long = 15;
/// `BPF_LINK_TYPE_PERF_EVENT`
const LINK_PERF_EVENT: u32 = 7;
/// `BPF_PERF_EVENT_KPROBE` and `BPF_PERF_EVENT_KRETPROBE`
const KPROBES: [u32; 2] = [3, 4];
/// Where `struct bpf_link_info` has its `type`, `prog_id`, `perf_event.type` and
/// `perf_event.kprobe.missed`.
const TYPE: usize = 0;
const PROGRAM: usize = 8;
const PERF_TYPE: usize = 16;
const MISSED: usize = 48;

/// Bytes of `struct bpf_link_info` up to and with `missed`.
type Info = [u8; 56];

/// Runs that kprobes of this process have missed, by the id of their program.
pub(super) fn missed() -> HashMap<u32, u64> {
    let mut missed = HashMap::new();
    for fd in links() {
        if let Some((program, count)) = info(fd).as_ref().and_then(missed_of) {
            *missed.entry(program).or_default() += count;
        }
    }
    missed
}

/// Open files of this process that are links.
fn links() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fdinfo").into_iter().flatten();
    let is_link = |path: &std::path::Path| {
        fs::read_to_string(path)
            .is_ok_and(|text| text.starts_with("link_type:") || text.contains("\nlink_type:"))
    };
    entries
        .flatten()
        .filter(|entry| is_link(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What the kernel says about the link `fd`; `None` if that is less than what is read here.
fn info(fd: RawFd) -> Option<Info> {
    let mut info: Info = [0; size_of::<Info>()];
    let length = u32::try_from(info.len()).ok()?;
    let mut attributes = [0_u8; 16];
    attributes[..4].copy_from_slice(&fd.to_ne_bytes());
    attributes[4..8].copy_from_slice(&length.to_ne_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: `attributes` is as long as it is said to be, and so is `info`, which the kernel fills.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            GET_INFO,
            attributes.as_mut_ptr(),
            attributes.len(),
        )
    };
    let filled = u32::from_ne_bytes(attributes[4..8].try_into().ok()?);
    (status == 0 && filled == length).then_some(info)
}

/// Program and missed runs, if the link is of a kprobe.
fn missed_of(info: &Info) -> Option<(u32, u64)> {
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let is_kprobe = word(TYPE)? == LINK_PERF_EVENT && KPROBES.contains(&word(PERF_TYPE)?);
    let missed = u64::from_ne_bytes(info.get(MISSED..)?.try_into().ok()?);
    is_kprobe.then_some((word(PROGRAM)?, missed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kprobes_have_missed_runs() {
        let mut info: Info = [0; 56];
        info[0] = 7;
        info[8] = 42;
        info[16] = 3;
        info[48] = 9;
        assert_eq!(missed_of(&info), Some((42, 9)));
        info[16] = 1;
        assert_eq!(missed_of(&info), None);
        info[16] = 4;
        info[0] = 2;
        assert_eq!(missed_of(&info), None);
    }
}
