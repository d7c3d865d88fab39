//! Which tasks are wanted. Ids and exact names are tested in the kernel; what else an expression asks here, for each process,
//! name and namespace that is seen, and the kernel is told of those that are not wanted.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::{Arg, Args, ValueEnum};
use netprobe_common::samples::{Sampling, TaskStack, Wanted as Kind, WantedKey};

use super::super::filter;
use crate::{
    filter::{Error, Expression, Predicate, check_columns, contradiction, matcher::Matcher},
    kernel::sampler,
    observe::cgroups,
    report::{Column, Row, Value},
};

/// What is known of a task.
const COLUMNS: &[Column] = &[
    Column::number("pid", "PID", 7, "process"),
    Column::text("comm", "COMM", 15, "name of the thread"),
    Column::number("netns", "NETNS", 10, "network namespace (inode number)"),
];

/// Options of graphs of tasks.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub(super) struct Options {
    /// Only kernel stacks.
    #[arg(short = 'K', long, conflicts_with = "user_only")]
    kernel_only: bool,
    /// Only user stacks.
    #[arg(short = 'U', long)]
    user_only: bool,
    /// How the callers of user functions are found.
    #[arg(long, value_enum, default_value_t, conflicts_with = "kernel_only")]
    unwind: Unwind,
    /// Only these threads.
    #[arg(long, value_name = "TID", value_delimiter = ',', help_heading = "Filters", value_parser = clap::value_parser!(u32).range(1..))]
    tid: Vec<u32>,
    /// Only these CPUs: 0,2-5.
    #[arg(short = 'C', long, value_name = "CPUS", help_heading = "Filters", value_delimiter = ',', value_parser = parse_cpus)]
    cpu: Vec<Cpus>,
}

/// What the filters mean for tasks; those that only sockets and packets have are refused, and not offered.
pub(super) fn for_tasks(argument: Arg) -> Arg {
    match argument.get_id().as_str() {
        "ipv4" | "ipv6" | "port" | "iface" | "reason" => argument.hide(true),
        "pid" => argument.help("Only these processes"),
        "comm" => argument.help(
            "Only threads with this name, of which the kernel keeps 15 bytes; * and ? stand for any letters",
        ),
        _ => argument,
    }
}

/// Ways to find the callers of user functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Unwind {
    /// By unwind tables, from a copy of the stack, unless all code of the process keeps frame pointers.
    #[default]
    Auto,
    /// By frame pointers only; cheaper, and cut where code does not keep them.
    FramePointers,
}

/// A range of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cpus {
    first: u32,
    last: u32,
}

fn parse_cpus(text: &str) -> Result<Cpus, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|cpu| *cpu < 4096)
            .ok_or_else(|| format!("{text} is not the number of a CPU"))
    };
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(format!("{first} comes after {last}"));
    }
    Ok(Cpus { first, last })
}

/// What the options mean.
#[derive(Debug)]
pub(super) struct Wanted {
    /// For the programs, without what the graph itself sets.
    pub(super) sampling: Sampling,
    /// What the programs look for.
    pub(super) keys: Vec<WantedKey>,
    /// The CPUs, all if there are none.
    pub(super) cpus: Vec<u32>,
    matcher: Matcher,
}

impl Wanted {
    /// Whether the whole filter wants the task.
    pub(super) fn admits(&self, task: &TaskStack) -> bool {
        self.matcher.admits(&Row {
            unix_ns: 0,
            packet: Vec::new(),
            monotonic_ns: 0,
            kind: "",
            values: vec![
                Value::nonzero(task.pid),
                Value::name(task.comm),
                Value::nonzero(task.netns),
            ],
        })
    }
}

impl Options {
    /// Refuses processes, threads and CPUs of which none is there, and says which of several are not.
    pub(super) fn must_be_there(&self, filter: &filter::Options) -> Result<()> {
        let is_task = |id: &u32| Path::new(&format!("/proc/{id}")).exists();
        missing("process", "--pid", filter.pids(), is_task)?;
        missing("thread", "--tid", &self.tid, is_task)?;
        let online = sampler::online_list()?;
        missing("online CPU", "--cpu", &self.cpus(), |cpu| {
            online.contains(cpu)
        })
    }

    fn cpus(&self) -> Vec<u32> {
        let ranges = self.cpu.iter();
        ranges.flat_map(|range| range.first..=range.last).collect()
    }

    /// Puts these options and those of every filter together.
    pub(super) fn wanted(&self, filter: &filter::Options) -> Result<Wanted> {
        let (cgroup, filter) = filter.without_cgroup();
        let expression = filter.expression()?;
        check_columns(&expression, "task", |name| {
            COLUMNS.iter().any(|column| column.name == name)
        })?;
        contradiction::check(&expression)?;
        let mut keys: Vec<WantedKey> = Vec::new();
        let mut is_theirs = true;
        for part in expression.conjuncts() {
            // Keys of one kind are alternatives to the programs, so one part of each kind is theirs.
            match keys_of(part) {
                Some(found) if !keys.iter().any(|key| key.kind == found[0].kind) => {
                    keys.extend(found);
                }
                _ => is_theirs = false,
            }
        }
        let mut add = |kind, id| keys.push(WantedKey::of_id(kind, id));
        for tid in &self.tid {
            add(Kind::Tid, u64::from(*tid));
        }
        if let Some(path) = &cgroup {
            let found = cgroups::below(path)
                .map_err(|why| Error::elsewhere(format!("--cgroup {path}: {why}")))?;
            for id in found {
                add(Kind::Cgroup, id);
            }
        }
        let cpus = self.cpus();
        for cpu in &cpus {
            add(Kind::Cpu, u64::from(*cpu));
        }
        let mut sampling = Sampling::NONE;
        sampling.kernel = u32::from(!self.user_only);
        sampling.user = u32::from(!self.kernel_only);
        sampling.copies = u32::from(!self.kernel_only && self.unwind == Unwind::Auto);
        sampling.wanted = keys.iter().fold(0, |bits, key| bits | 1 << key.kind);
        sampling.netns = u32::from(asks_netns(&expression));
        sampling.learns_tasks = u32::from(!is_theirs);
        Ok(Wanted {
            sampling,
            keys,
            cpus,
            matcher: Matcher::new(expression, COLUMNS),
        })
    }
}

/// Complains of what was asked for and is not there.
fn missing(what: &str, option: &str, asked: &[u32], is_there: impl Fn(&u32) -> bool) -> Result<()> {
    let missing: Vec<u32> = asked.iter().copied().filter(|id| !is_there(id)).collect();
    let are = match missing[..] {
        [] => return Ok(()),
        [one] => format!("there is no {what} {one}"),
        _ => {
            let plural = if what == "process" { "es" } else { "s" };
            format!("there are no {what}{plural} {}", ranges(&missing))
        }
    };
    ensure!(missing.len() < asked.len(), "{option}: {are}");
    log::warn!("{option}: {are}; the graph is of the others");
    Ok(())
}

/// Numbers as a list, in which those that follow one another are a range: 3, 5-99.
fn ranges(numbers: &[u32]) -> String {
    let parts = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    let parts = parts.flat_map(|part| match part {
        [first, .., last] if part.len() > 2 => vec![format!("{first}-{last}")],
        _ => part.iter().map(ToString::to_string).collect(),
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// The keys of a part that any of them satisfies; none if it asks for anything else.
fn keys_of(part: &Expression) -> Option<Vec<WantedKey>> {
    let mut keys: Vec<WantedKey> = Vec::new();
    let one_kind = part.each(&mut |test| {
        let key = match &test.predicate {
            Predicate::Pid(pid) => WantedKey::of_id(Kind::Pid, u64::from(*pid)),
            Predicate::Netns(inode) => WantedKey::of_id(Kind::Netns, u64::from(*inode)),
            Predicate::Comm(pattern) => WantedKey::of_name(&padded(pattern.exact().ok_or(())?)?),
            _ => return Err(()),
        };
        let fits = !test.is_negated && keys.iter().all(|other| other.kind == key.kind);
        keys.push(key);
        if fits { Ok(()) } else { Err(()) }
    });
    let is_any = !matches!(part, Expression::And(_));
    (one_kind.is_ok() && is_any && !keys.is_empty()).then_some(keys)
}

/// A name as the kernel keeps it.
fn padded(name: &str) -> Result<[u8; 16], ()> {
    let mut padded = [0; 16];
    let place = padded.get_mut(..name.len()).ok_or(())?;
    place.copy_from_slice(name.as_bytes());
    if padded[15] != 0 { Err(()) } else { Ok(padded) }
}

fn asks_netns(expression: &Expression) -> bool {
    let asked = expression.each(&mut |test| match test.predicate {
        Predicate::Netns(_) => Err(()),
        _ => Ok(()),
    });
    asked.is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        tasks: Options,
        #[command(flatten)]
        filter: filter::Options,
    }

    fn wanted(words: &[&str]) -> Wanted {
        let line = Line::parse_from([&["netprobe"], words].concat());
        line.tasks.wanted(&line.filter).unwrap()
    }

    fn task(pid: u32, comm: &[u8]) -> TaskStack {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm);
        TaskStack {
            kernel: 0,
            user: 0,
            pid,
            netns: 0,
            comm: name,
        }
    }

    #[test]
    fn ids_go_to_the_kernel_and_names_do_not() {
        let wanted = wanted(&["--pid", "5,6", "--comm", "php*", "--tid", "9"]);
        let expected = [(Kind::Pid, 5), (Kind::Pid, 6), (Kind::Tid, 9)];
        assert_eq!(
            wanted.keys,
            expected.map(|(kind, id)| WantedKey::of_id(kind, id))
        );
        assert_eq!(wanted.sampling.wanted, Kind::Pid.bit() | Kind::Tid.bit());
        assert_eq!(wanted.sampling.learns_tasks, 1);
        assert!(wanted.admits(&task(6, b"php-fpm")));
        assert!(!wanted.admits(&task(6, b"nginx")));
        assert!(!wanted.admits(&task(7, b"php-fpm")));
    }

    #[test]
    fn what_excludes_ids_is_not_for_the_kernel() {
        let wanted = wanted(&["--filter", "not pid 5 and (pid 6 or comm x)"]);
        assert_eq!(wanted.keys, []);
        assert!(wanted.admits(&task(7, b"x")));
        assert!(!wanted.admits(&task(5, b"x")));
    }

    #[test]
    fn exact_names_go_to_the_kernel() {
        let wanted = wanted(&["--comm", "nginx,redis"]);
        assert_eq!(
            wanted.keys[0],
            WantedKey::of_name(b"nginx\0\0\0\0\0\0\0\0\0\0\0")
        );
        assert_eq!(wanted.keys.len(), 2);
        assert_eq!(wanted.sampling.wanted, Kind::Comm.bit());
        assert_eq!(wanted.sampling.learns_tasks, 0);
    }

    #[test]
    fn what_is_not_there_is_refused_unless_others_are() {
        let check = |asked: &[u32]| missing("process", "--pid", asked, |id| *id < 10);
        assert!(check(&[]).is_ok());
        assert!(check(&[1, 11]).is_ok());
        let refused = check(&[11]).unwrap_err().to_string();
        assert_eq!(refused, "--pid: there is no process 11");
        let refused = check(&[11, 12]).unwrap_err().to_string();
        assert_eq!(refused, "--pid: there are no processes 11, 12");
    }

    #[test]
    fn filters_that_tasks_lack_are_not_offered() {
        use clap::CommandFactory;
        let help = Line::command().mut_args(for_tasks).render_long_help();
        let help = help.to_string();
        for (option, is_offered) in [
            ("--port", false),
            ("--ipv4", false),
            ("--iface", false),
            ("--reason", false),
            ("--pid", true),
            ("threads with this name", true),
        ] {
            assert_eq!(help.contains(option), is_offered, "{option}: {help}");
        }
    }

    #[test]
    fn many_that_are_not_there_are_named_in_a_line() {
        let cpus: Vec<u32> = [3].into_iter().chain(5..100).chain([200, 201]).collect();
        assert_eq!(ranges(&cpus), "3, 5-99, 200, 201");
        assert_eq!(ranges(&[7]), "7");
        assert_eq!(ranges(&[u32::MAX]), "4294967295");
    }

    #[test]
    fn cpus_are_lists_of_ranges() {
        assert_eq!(wanted(&["--cpu", "0,2-4"]).cpus, [0, 2, 3, 4]);
        for wrong in ["x", "3-1", "-1", "5000"] {
            assert!(parse_cpus(wrong).is_err(), "{wrong}");
        }
    }
}
