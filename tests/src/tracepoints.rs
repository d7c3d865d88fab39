//! Whether tracepoints fire wherever the kernel counts.
//!
//! The kernels of some hosted machines run an interrupt a second in which nothing is traced, so that what a timer does there
//! is counted by the kernel and seen by no program at all, nor told as missed.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    thread::sleep,
    time::Duration,
};

use crate::bpf;

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;
const RAW_TRACEPOINT_OPEN: i64 = 17;

const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

/// Counts how often a tracepoint fires, with the least program that can.
#[derive(Debug)]
struct Firings {
    map: OwnedFd,
    _link: OwnedFd,
}

/// Softirqs of a time: those that the kernel counted, and how many of them `softirq_entry` did not fire for.
#[derive(Clone, Copy, Debug)]
pub struct Softirqs {
    /// The sum of `/proc/softirqs`.
    pub counted: u64,
    /// Those that no program could see.
    pub untraced: u64,
}

impl Softirqs {
    /// Counts for a while.
    pub fn of(time: Duration) -> Self {
        let firings = Firings::of(c"softirq_entry");
        // The time of the firings is the longer one.
        let (fired, counted) = (firings.count(), softirqs());
        sleep(time);
        let counted = softirqs() - counted;
        let fired = firings.count() - fired;
        Self {
            counted,
            untraced: counted.saturating_sub(fired),
        }
    }
}

/// All that `kstat_incr_softirqs_this_cpu()` counted, which the kernel calls right before the tracepoint.
fn softirqs() -> u64 {
    let text = fs::read_to_string("/proc/softirqs").expect("read what the kernel counted");
    let numbers = text
        .lines()
        .skip(1)
        .flat_map(|line| line.split_whitespace().skip(1));
    numbers
        .filter_map(|number| number.parse::<u64>().ok())
        .sum()
}

impl Firings {
    fn of(tracepoint: &std::ffi::CStr) -> Self {
        let mut map = attributes(&[MAP_TYPE_ARRAY, 4, 8, 1]);
        // SAFETY: it has no addresses.
        let map = unsafe { bpf::open(MAP_CREATE, &mut map) }.expect("make a map");
        let program = [
            // The address of the only value of the map.
            instruction(0x18, 0x21, map.as_raw_fd()),
            instruction(0, 0, 0),
            // r2 = 1; lock *r1 += r2; return 0
            instruction(0xb7, 2, 1),
            instruction(0xdb, 0x21, 0),
            instruction(0xb7, 0, 0),
            instruction(0x95, 0, 0),
        ];
        let length = u32::try_from(program.len()).expect("it is short");
        let mut load = attributes(&[PROG_TYPE_RAW_TRACEPOINT, length]);
        load[8..16].copy_from_slice(&address(program.as_ptr()));
        load[16..24].copy_from_slice(&address(c"GPL".as_ptr()));
        // SAFETY: `program` has as many instructions as it is said to have, and the licence ends with a zero.
        let loaded = unsafe { bpf::open(PROG_LOAD, &mut load) }.expect("load a program");
        let mut attach = attributes(&[]);
        attach[..8].copy_from_slice(&address(tracepoint.as_ptr()));
        attach[8..12].copy_from_slice(&loaded.as_raw_fd().to_ne_bytes());
        // SAFETY: the name ends with a zero.
        let link = unsafe { bpf::open(RAW_TRACEPOINT_OPEN, &mut attach) }.expect("attach it");
        Self { map, _link: link }
    }

    fn count(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let mut look = attributes(&[]);
        look[..4].copy_from_slice(&self.map.as_raw_fd().to_ne_bytes());
        look[8..16].copy_from_slice(&address(&raw const key));
        look[16..24].copy_from_slice(&address(&raw mut value));
        // SAFETY: `key` and `value` are as long as those of the map.
        unsafe { bpf::call(MAP_LOOKUP_ELEM, &mut look) }.expect("read the map");
        value
    }
}

/// `union bpf_attr` that begins with these words.
fn attributes(words: &[u32]) -> [u8; 64] {
    let mut attributes = [0; 64];
    for (bytes, word) in attributes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    attributes
}

fn address<T>(pointer: *const T) -> [u8; 8] {
    (pointer.expose_provenance() as u64).to_ne_bytes()
}

/// `struct bpf_insn`, without an offset.
fn instruction(code: u8, registers: u8, value: i32) -> [u8; 8] {
    let [a, b, c, d] = value.to_ne_bytes();
    [code, registers, 0, 0, a, b, c, d]
}
