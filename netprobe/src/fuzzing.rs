//! What reads bytes from outside, as targets for a fuzzer: none may panic, hang or take memory without bounds,
//! whatever it is given. `tests/fuzz` has them for cargo-fuzz, with the corpora that the tests below read too.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use crate::{
    decode::{NoNames, decode},
    filter::{self, Services},
    kernel::{btf_index, fdinfo::FdInfo, task_stacks::Sent},
    observe::{
        cgroups::Cgroup, conntrack::Entries, counters, diag, hosts, interfaces, namespaces,
        netlink, netns, processes, services, sockets, softnet,
    },
    render::{folded, pprof},
    report::Row,
    symbols,
};

/// A reader and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("btf", btf),
    ("filter", filter),
    ("netlink", netlink),
    ("proc", proc),
    ("profiles", profiles),
    ("records", records),
    ("symbols", symbols::read_hostile),
];

/// Reads `bytes` with the target of that name.
///
/// # Panics
/// If there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.0 == name);
    let (_, read) = target.expect("a target of this name");
    read(bytes);
}

/// Records from the ring, and copies of stacks.
fn records(bytes: &[u8]) {
    let mut row = Row::default();
    // Refusing is an answer.
    let _refused = decode(bytes, &mut NoNames, &mut row);
    Sent::parse(bytes);
}

/// The kernel's types.
fn btf(bytes: &[u8]) {
    let names = ["sock", "tcp_sock", "btf_trace_kfree_skb"].map(str::to_owned);
    let names = HashSet::from(names);
    if let Some(index) = btf_index::find(bytes, &names) {
        _ = btf_index::thin(&index, &names);
    }
}

/// Expressions of `--filter`.
fn filter(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(error) = filter::parse(&text, &Nobody) {
        let _shown = error.to_string();
    }
}

/// Knows nothing by name.
#[derive(Debug)]
struct Nobody;

impl Services for Nobody {
    fn hosts(&self, _name: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    fn port(&self, _name: &str) -> Option<u16> {
        None
    }

    fn netns(&self, text: &str) -> Result<u32, String> {
        netns::inode(text)
    }

    fn cgroup(&self, _text: &str) -> Result<Cgroup, String> {
        Err("no such control group".to_owned())
    }
}

/// Files of `/proc`, `/sys` and `/etc`.
fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    softnet::parse(&text);
    interfaces::parse(&text);
    namespaces::mounts(&text);
    processes::open_files(&text);
    processes::unit(&text);
    processes::socket(&text);
    services::find(&text, "http");
    hosts::find(&text, "localhost");
    FdInfo::parse(&text);
    let mut kept = counters::Counters::new();
    counters::named_lines(&text, &mut kept);
    counters::single_lines(&text, &mut kept);
    counters::word_lines(&text, "sockstat", &mut kept);
    counters::per_cpu(&text, "nf_conntrack", &mut kept);
    counters::route6(&text, &mut kept);
    let mut entries = Entries::default();
    text.lines().for_each(|line| entries.add(line));
}

/// Datagrams of netlink.
fn netlink(bytes: &[u8]) {
    let _refused = netlink::take(bytes, &mut |message| {
        diag::parse(message);
    });
    diag::parse(bytes);
    interfaces::statistics64(bytes);
    interfaces::qdisc(bytes, &BTreeMap::new());
    let _refused = sockets::take(bytes, &mut |_socket| {});
}

/// Profiles to compare.
fn profiles(bytes: &[u8]) {
    // Unpacked: a fuzzer cannot get past the checksum.
    pprof::parse(bytes).ok();
    folded::read(&String::from_utf8_lossy(bytes)).ok();
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    /// A generator of numbers for mutations, always the same (xorshift64).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % sides.max(1) as u64).unwrap()
        }
    }

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let mut paths: Vec<_> = fs::read_dir(folder.join(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// Changes some bytes, takes some out, or puts some of another one in.
    fn mutate(seed: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=dice.roll(4) {
            let at = dice.roll(bytes.len() + 1);
            match dice.roll(4) {
                0 => bytes.truncate(at),
                1 => {
                    let end = (at + dice.roll(8)).min(bytes.len());
                    bytes.drain(at..end);
                }
                2 => {
                    let from = dice.roll(other.len() + 1);
                    let some = &other[from..(from + dice.roll(16)).min(other.len())];
                    bytes.splice(at..at, some.iter().copied());
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = [0, 0x7f, 0x80, 0xff, *byte ^ 1 << dice.roll(8)][dice.roll(5)];
                    }
                }
            }
        }
        bytes
    }

    #[test]
    fn readers_survive_their_corpora_and_what_is_like_them() {
        const MUTATIONS: usize = 500;
        for (name, read) in TARGETS {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name} has no corpus");
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
            for seed in &corpus {
                read(seed);
                for _ in 0..MUTATIONS {
                    let other = &corpus[dice.roll(corpus.len())];
                    read(&mutate(seed, other, &mut dice));
                }
            }
        }
    }
}
