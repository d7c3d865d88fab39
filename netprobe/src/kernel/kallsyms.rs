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
/// More than kernels of distributions have.
const MOST_FUNCTIONS: usize = 1 << 18;
/// How far a function reaches at most that is neither the kernel's nor a module's: a BPF program or a trampoline.
const MOST_BYTES: u64 = 64 << 10;

/// A function, of which there are more than a hundred thousand.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u64,
    /// How many bytes it is long at most; while the list is read, its owner.
    reach: u32,
    /// Where its name begins, which ends with the line.
    name: u32,
}

/// All functions, by address.
#[derive(Debug, Default)]
pub(super) struct Kallsyms {
    functions: Vec<Function>,
    names: String,
}

/// How far code goes, by owner: of the kernel; of what is loaded or made at run time; of each module.
#[derive(Debug)]
struct Owners<'a> {
    modules: HashMap<&'a str, u32>,
    ends: Vec<u64>,
}

impl<'a> Owners<'a> {
    const KERNEL: u32 = 0;
    const OTHER: u32 = 1;

    /// Reads `/proc/modules`: `NAME BYTES USERS OTHERS STATE ADDRESS`.
    fn read(modules: &'a str) -> Self {
        let mut owners = Self {
            modules: HashMap::new(),
            ends: vec![u64::MAX; 2],
        };
        for line in modules.lines() {
            if let Some((name, end)) = module_end(line) {
                let index = u32::try_from(owners.ends.len()).unwrap_or(Self::OTHER);
                owners.modules.insert(name, index);
                owners.ends.push(end);
            }
        }
        owners
    }

    /// The owner of a function with this last word, if there is one.
    fn of(&self, module: Option<&str>) -> u32 {
        let Some(module) = module else {
            return Self::KERNEL;
        };
        let known = self.modules.get(module.trim_matches(['[', ']']));
        known.copied().unwrap_or(Self::OTHER)
    }

    /// Where a function that begins at `start` must have ended.
    fn end(&self, owner: u32, start: u64) -> u64 {
        if owner == Self::OTHER {
            return start.saturating_add(MOST_BYTES);
        }
        self.ends.get(owner as usize).copied().unwrap_or(start)
    }
}

fn module_end(line: &str) -> Option<(&str, u64)> {
    let mut parts = line.split(' ');
    let (name, bytes) = (parts.next()?, parts.next()?.parse::<u64>().ok()?);
    let address = parts.nth(3)?.trim_start_matches("0x");
    let start = u64::from_str_radix(address, 16).ok()?;
    Some((name, start.checked_add(bytes)?))
}

impl Kallsyms {
    /// Those of the running kernel; none if it hides them.
    pub(super) fn load() -> Self {
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        let read = File::open("/proc/kallsyms").and_then(|file| {
            let file = BufReader::with_capacity(1 << 16, file);
            Self::read(file, &Owners::read(&modules))
        });
        read.unwrap_or_else(|error| {
            log::debug!("/proc/kallsyms: {error}");
            Self::default()
        })
    }

    fn read(mut text: impl BufRead, owners: &Owners<'_>) -> io::Result<Self> {
        // Room for a large kernel: what is not written to takes no memory, but what grows leaves holes behind.
        let mut names = String::with_capacity(MOST_FUNCTIONS * 32);
        let mut functions: Vec<Function> = Vec::with_capacity(MOST_FUNCTIONS);
        let mut line = String::new();
        while text.read_line(&mut line)? > 0 {
            if let Some((start, name, module)) = parse(&line) {
                functions.push(Function {
                    start,
                    reach: owners.of(module),
                    name: u32::try_from(names.len()).unwrap_or(u32::MAX),
                });
                names.push_str(name);
                names.push('\n');
            }
            line.clear();
        }
        // Of several names for one place the first is kept, as the kernel does.
        functions.sort_unstable_by_key(|function| (function.start, function.name));
        functions.dedup_by_key(|function| function.start);
        let mut next = u64::MAX;
        for function in functions.iter_mut().rev() {
            let end = owners.end(function.reach, function.start).min(next);
            let reach = end.saturating_sub(function.start);
            function.reach = u32::try_from(reach).unwrap_or(u32::MAX);
            next = function.start;
        }
        Ok(Self { functions, names })
    }

    /// The function at an address, and how far into it that is.
    pub(super) fn at(&self, address: u64) -> Option<(&str, u64)> {
        let after = self
            .functions
            .partition_point(|function| function.start <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let name = self.names.get(function.name as usize..)?.lines().next()?;
        let offset = address - function.start;
        let is_inside = offset < u64::from(function.reach) && !ENDS.contains(&name);
        is_inside.then_some((name, offset))
    }

    /// Whether the kernel names nothing: it shows zeroes for all addresses.
    pub(super) fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }
}

/// The address, name and module of a function; nothing for data, and where the address is hidden.
fn parse(line: &str) -> Option<(u64, &str, Option<&str>)> {
    let mut parts = line.split_ascii_whitespace();
    let start = u64::from_str_radix(parts.next()?, 16).ok()?;
    if start == 0 || !matches!(parts.next()?, "t" | "T" | "w" | "W") {
        return None;
    }
    Some((start, parts.next()?, parts.next()))
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
        Kallsyms::read(text.as_bytes(), &Owners::read(MODULES)).unwrap()
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
