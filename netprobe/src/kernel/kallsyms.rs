//! The kernel's functions as `/proc/kallsyms` lists them, which says where each begins and not where it ends. So the
//! ends of the kernel's own code and of its modules are looked for too: what lies beyond them, such as a BPF program
//! that was loaded since, has no name, rather than that of whatever comes before.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader},
};

/// Where the kernel's own code ends, and that for its start.
const ENDS: [&str; 2] = ["_etext", "_einittext"];
/// How far a function reaches at most that is neither the kernel's nor a module's: a BPF program or a trampoline.
const MOST_BYTES: u64 = 64 << 10;

/// A function.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u64,
    /// The address after its last.
    end: u64,
    /// Where its name is, and how long.
    name: (u32, u16),
}

/// All functions, by address.
#[derive(Debug, Default)]
pub(super) struct Kallsyms {
    functions: Vec<Function>,
    names: String,
}

/// Whose code a function is.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Kernel,
    /// A module, which ends here.
    Module(u64),
    /// Loaded or made at run time.
    Other,
}

impl Kallsyms {
    /// Those of the running kernel; none if it hides them.
    pub(super) fn load() -> Self {
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        let read = File::open("/proc/kallsyms").and_then(|file| {
            let file = BufReader::with_capacity(1 << 16, file);
            Self::read(file, &module_ends(&modules))
        });
        read.unwrap_or_else(|error| {
            log::debug!("/proc/kallsyms: {error}");
            Self::default()
        })
    }

    fn read(mut text: impl BufRead, module_ends: &HashMap<&str, u64>) -> io::Result<Self> {
        let mut names = String::new();
        let mut found: Vec<(Function, Owner)> = Vec::new();
        let mut line = String::new();
        while text.read_line(&mut line)? > 0 {
            if let Some((start, name, owner)) = parse(&line, module_ends) {
                let at = u32::try_from(names.len()).unwrap_or(u32::MAX);
                let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
                names.push_str(name);
                let (end, name) = (start, (at, length));
                found.push((Function { start, end, name }, owner));
            }
            line.clear();
        }
        // Of several names for one place the first is kept, as the kernel does.
        found.sort_by_key(|(function, _)| function.start);
        found.dedup_by_key(|(function, _)| function.start);
        let nexts: Vec<u64> = found.iter().skip(1).map(|(next, _)| next.start).collect();
        for (index, (function, owner)) in found.iter_mut().enumerate() {
            let next = nexts.get(index).copied().unwrap_or(u64::MAX);
            let most = match owner {
                Owner::Kernel => u64::MAX,
                Owner::Module(end) => *end,
                Owner::Other => function.start.saturating_add(MOST_BYTES),
            };
            function.end = next.min(most);
        }
        let functions = found.into_iter().map(|(function, _)| function).collect();
        Ok(Self { functions, names })
    }

    /// The function at an address, and how far into it that is.
    pub(super) fn at(&self, address: u64) -> Option<(&str, u64)> {
        let after = self
            .functions
            .partition_point(|function| function.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let (at, length) = (function.name.0 as usize, usize::from(function.name.1));
        let name = self.names.get(at..at + length)?;
        let is_inside = address < function.end && !ENDS.contains(&name);
        is_inside.then_some((name, address - function.start))
    }

    /// Whether the kernel names nothing: it shows zeroes for all addresses.
    pub(super) fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }
}

/// The address, name and owner of a function; nothing for data, and where the address is hidden.
fn parse<'a>(line: &'a str, module_ends: &HashMap<&str, u64>) -> Option<(u64, &'a str, Owner)> {
    let mut parts = line.split_ascii_whitespace();
    let start = u64::from_str_radix(parts.next()?, 16).ok()?;
    if start == 0 || !matches!(parts.next()?, "t" | "T" | "w" | "W") {
        return None;
    }
    let name = parts.next()?;
    let owner = match parts.next() {
        None => Owner::Kernel,
        Some(module) => {
            let end = module_ends.get(module.trim_matches(['[', ']']));
            end.map_or(Owner::Other, |end| Owner::Module(*end))
        }
    };
    Some((start, name, owner))
}

/// Where each module of `/proc/modules` ends: `NAME BYTES USERS OTHERS STATE ADDRESS`.
fn module_ends(text: &str) -> HashMap<&str, u64> {
    let ends = text.lines().filter_map(|line| {
        let mut parts = line.split(' ');
        let (name, bytes) = (parts.next()?, parts.next()?.parse::<u64>().ok()?);
        let address = parts.nth(3)?.trim_start_matches("0x");
        let start = u64::from_str_radix(address, 16).ok()?;
        Some((name, start.checked_add(bytes)?))
    });
    ends.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of Linux 6.1, whose per-CPU variables are at 0.
    const TEXT: &str = "\
0000000000000000 A fixed_percpu_data
0000000000000000 A __per_cpu_start
0000000000001000 A cpu_debug_store
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000040 T tcp_v4_rcv
ffffffff81000100 t tcp_v4_send_reset
ffffffff81002000 T _etext
ffffffff82000000 D __init_scratch_end
ffffffff83000000 T _sinittext
ffffffff83001000 T _einittext
ffffffffc0000000 t nf_conntrack_in\t[nf_conntrack]
ffffffffc0000f00 d __this_module\t[nf_conntrack]
ffffffffc0005000 t bpf_prog_6deef7357e7b4530_drops\t[bpf]
";
    const MODULES: &str = "nf_conntrack 4096 1 nf_nat, Live 0xffffffffc0000000 (E)\n";

    fn kallsyms(text: &str) -> Kallsyms {
        Kallsyms::read(text.as_bytes(), &module_ends(MODULES)).unwrap()
    }

    fn name(address: u64) -> Option<(String, u64)> {
        let kallsyms = kallsyms(TEXT);
        let found = kallsyms.at(address);
        found.map(|(name, offset)| (name.to_owned(), offset))
    }

    #[test]
    fn addresses_at_0_are_per_cpu_variables_and_not_hidden() {
        assert!(!kallsyms(TEXT).is_empty());
        let hidden = "0000000000000000 A fixed_percpu_data\n0000000000000000 T _text\n";
        assert!(kallsyms(hidden).is_empty());
    }

    #[test]
    fn functions_reach_to_the_next_one() {
        let found = |name: &str, offset| Some((name.to_owned(), offset));
        assert_eq!(name(0xffff_ffff_8100_0000), found("_stext", 0));
        assert_eq!(name(0xffff_ffff_8100_00ff), found("tcp_v4_rcv", 0xbf));
        let last = name(0xffff_ffff_8100_1fff);
        assert_eq!(last, found("tcp_v4_send_reset", 0x1eff));
        let module = name(0xffff_ffff_c000_0f80);
        assert_eq!(module, found("nf_conntrack_in", 0xf80));
        let program = name(0xffff_ffff_c000_5123);
        assert_eq!(program, found("bpf_prog_6deef7357e7b4530_drops", 0x123));
    }

    #[test]
    fn what_is_behind_the_last_function_has_no_name() {
        for address in [
            0x1010,
            0xffff_ffff_8100_2000,
            0xffff_ffff_8200_0040,
            0xffff_ffff_8300_1040,
            0xffff_ffff_c000_1000,
            0xffff_ffff_c000_4fff,
            0xffff_ffff_c001_5000,
            u64::MAX,
        ] {
            assert_eq!(name(address), None, "{address:#x}");
        }
    }
}
