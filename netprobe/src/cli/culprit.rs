//! `diagnose --svg`: the flame graph that shows the first finding: the stacks of the events that are the incident, or
//! where the threads of the processes that cause it are; nothing, where neither shows it.

use std::{path::Path, sync::Arc, thread, time::Duration};

use anyhow::{Result, bail};
use netprobe_common::{
    counters::{Count, StackKey},
    header::Kind,
};

use super::later::Later;
use crate::{
    aggregate::stacks::Folder,
    kernel::names::LiveNames,
    observe::{
        processes::{Process, Processes},
        threads,
    },
    probes,
    render::{flamegraph, text},
    report::{
        Flame, Folded, Palette, Profile,
        diagnosis::{Diagnosis, Finding},
    },
};

/// How often the threads of a process are looked at.
const LOOKS: u32 = 10;
/// How long after each other.
const PAUSE: Duration = Duration::from_millis(10);
/// Most processes that are looked at.
const MOST: usize = 64;

/// What shows a finding.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// The stacks of these events, the nearest first.
    Events(&'static [Kind]),
    /// The threads of the processes that are named.
    Threads,
    /// Nothing that has a stack.
    Nothing,
}

/// What shows the finding with this id.
fn shown(id: &str) -> Shown {
    match id {
        "application-not-accepting" | "fd-exhaustion" => Shown::Threads,
        // A probe does not work everywhere; what is lost, all of these drop.
        "conntrack-table-full" => Shown::Events(&[Kind::Conntrack, Kind::Drops]),
        "accept-queue-overflow" | "syn-backlog-full" | "half-open-established" => {
            Shown::Events(&[Kind::Listeners, Kind::Drops])
        }
        "ephemeral-ports-exhausted" | "port-search-cost" => Shown::Events(&[Kind::Connects]),
        "time-wait-buildup" | "time-wait-overflow" => Shown::Events(&[Kind::TimeWait]),
        "syn-retransmits" | "path-loss" => Shown::Events(&[Kind::Retransmits]),
        "idle-reset" | "resets" | "orphan-overflow" => Shown::Events(&[Kind::Resets]),
        "short-lived-connections" | "long-held-connections" => Shown::Events(&[Kind::Lifetimes]),
        "firewall-drops"
        | "egress-queue-drops"
        | "receive-path-drops"
        | "neighbour-table-full"
        | "route-cache-full"
        | "tcp-memory-pressure" => Shown::Events(&[Kind::Drops]),
        _ => Shown::Nothing,
    }
}

/// Where the graph goes.
pub(super) struct Graph<'a> {
    pub(super) path: &'a Path,
    pub(super) file: Later,
}

impl<'a> Graph<'a> {
    /// Opens the file, so that a mistake in its path shows at once.
    pub(super) fn open(path: &'a Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            bail!("--svg -: the verdict goes to standard output, name a file");
        }
        let file = Later::open(path.to_owned())?;
        Ok(Self { path, file })
    }
}

/// What can be drawn.
pub(super) struct Seen<'a> {
    pub(super) diagnosis: &'a Diagnosis,
    pub(super) processes: &'a Processes,
    pub(super) stacks: &'a [(StackKey, Count)],
}

/// Stacks, and what they are of.
struct Drawing {
    stacks: Vec<Folded>,
    unit: &'static str,
    of: String,
}

/// Draws the graph of the first finding into the file. Returns what it shows, in a sentence, or that there is none.
pub(super) fn draw(graph: Graph<'_>, seen: &Seen<'_>, names: &mut LiveNames) -> Result<String> {
    let path = text::harmless(&graph.path.display().to_string());
    let Some(finding) = seen.diagnosis.findings.first() else {
        return Ok(format!("{path} is not written: nothing was found"));
    };
    let drawing = match shown(finding.id) {
        Shown::Events(kinds) => events(kinds, seen.stacks, names),
        Shown::Threads => threads(finding, seen.processes),
        Shown::Nothing => None,
    };
    let Some(drawing) = drawing else {
        let id = finding.id;
        return Ok(format!("{path} is not written: no stack shows {id}"));
    };
    let said = format!("{path} shows {}: {}", finding.id, drawing.of);
    let flame = flame(seen.diagnosis, finding, drawing);
    let style = flamegraph::Style {
        is_inverted: false,
        palette: flame.palette,
    };
    graph
        .file
        .write(|out| flamegraph::write(out, &flame, style))?;
    Ok(said)
}

fn flame(diagnosis: &Diagnosis, finding: &Finding, drawing: Drawing) -> Flame {
    Flame {
        title: format!("{}: {}", finding.id, drawing.of),
        subtitle: format!(
            "{}, Linux {}, {:.1} s",
            text::harmless(&diagnosis.host.name),
            diagnosis.host.kernel,
            diagnosis.window.as_secs_f64()
        ),
        unit: drawing.unit,
        palette: Palette::Hot,
        profile: Profile {
            name: drawing.unit,
            unit: "count",
            elapsed: diagnosis.window,
            unix_ns: diagnosis.started_unix_ns,
            period_ns: 0,
        },
        stacks: drawing.stacks,
    }
}

/// The stacks of the first of these kinds that has any.
fn events(kinds: &[Kind], stacks: &[(StackKey, Count)], names: &mut LiveNames) -> Option<Drawing> {
    let mut drawings = kinds.iter().map(|kind| Drawing {
        stacks: fold(*kind, stacks, names),
        unit: probes::of(*kind).name(),
        of: format!("{}, of the whole machine", probes::of(*kind).name()),
    });
    drawings.find(|drawing| !drawing.stacks.is_empty())
}

/// The stacks of the events of a kind, rooted in their reason.
fn fold(kind: Kind, stacks: &[(StackKey, Count)], names: &mut LiveNames) -> Vec<Folded> {
    let mut folder = Folder::default();
    for (key, count) in stacks {
        if key.kind != kind as u32 {
            continue;
        }
        let mut root = String::new();
        text::push(&mut root, &(probes::of(kind).code)(key.code, names));
        let mut frames = vec![Arc::from(root)];
        let innermost_first = names.drawn_frames(key.stack).unwrap_or_default();
        let kernel = innermost_first.iter().rev();
        frames.extend(kernel.map(|name| Arc::from(format!("{name}_[k]"))));
        folder.add(frames, count.events);
    }
    folder.finish()
}

/// Where the threads of the processes that a finding names are now.
fn threads(finding: &Finding, processes: &Processes) -> Option<Drawing> {
    let culprits = culprits(finding, processes);
    let first = culprits.first()?;
    let mut folder = Folder::default();
    for look in 0..LOOKS {
        if look > 0 {
            thread::sleep(PAUSE);
        }
        for culprit in &culprits {
            for thread in threads::of(culprit.pid) {
                folder.add(frames(culprit, &thread), 1);
            }
        }
    }
    let who = match culprits.len() {
        1 => format!("{} (pid {})", text::harmless(&first.comm), first.pid),
        count => format!("{count} processes of {}", text::harmless(&first.comm)),
    };
    let stacks = folder.finish();
    (!stacks.is_empty()).then(|| Drawing {
        stacks,
        unit: "looks",
        of: format!("where the threads of {who} were after the window"),
    })
}

fn frames(process: &Process, thread: &threads::Thread) -> Vec<Arc<str>> {
    let mut frames = vec![Arc::from(text::harmless(&process.comm))];
    if thread.comm != process.comm {
        frames.push(Arc::from(text::harmless(&thread.comm)));
    }
    let kernel = thread.functions.iter().rev();
    frames.extend(kernel.map(|name| Arc::from(format!("{name}_[k]"))));
    if thread.functions.is_empty() {
        let state = thread
            .state
            .map_or(String::new(), |state| format!(" ({state})"));
        frames.push(Arc::from(format!("not in the kernel{state}")));
    }
    frames
}

/// The processes that a finding names, and those that hold the same listeners: of preforked workers it names the parent.
fn culprits<'a>(finding: &Finding, processes: &'a Processes) -> Vec<&'a Process> {
    let is_named = |pid: u32| finding.affected.iter().any(|hit| hit.pid == Some(pid));
    let known = || processes.by_pid.values();
    let sockets: Vec<u64> = known()
        .filter(|process| is_named(process.pid))
        .flat_map(|process| process.sockets.iter().copied())
        .collect();
    let is_one = |process: &&Process| {
        is_named(process.pid) || process.sockets.iter().any(|ino| sockets.contains(ino))
    };
    known().filter(is_one).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        diagnose::RULES,
        report::diagnosis::{Affected, Confidence, Severity},
    };

    fn finding(pid: u32) -> Finding {
        Finding {
            id: "application-not-accepting",
            severity: Severity::Critical,
            confidence: Confidence::High,
            summary: String::new(),
            evidence: Vec::new(),
            affected: vec![Affected {
                kind: "listener",
                name: "port 80".to_owned(),
                netns: None,
                pid: Some(pid),
                comm: None,
                address: None,
                port: Some(80),
            }],
            fixes: Vec::new(),
            behind: None,
            awaits: None,
            stops: Vec::new(),
        }
    }

    fn processes(held: &[(u32, u64)]) -> Processes {
        let mut processes = Processes::default();
        for (pid, ino) in held {
            let process = Process {
                pid: *pid,
                comm: "server".to_owned(),
                sockets: vec![*ino],
                ..Process::default()
            };
            processes.by_pid.insert(*pid, process);
        }
        processes
    }

    #[test]
    fn the_workers_of_a_named_parent_are_shown_and_nobody_else() {
        let processes = processes(&[(100, 7), (101, 7), (200, 9)]);
        let finding = finding(100);
        let pids: Vec<u32> = culprits(&finding, &processes)
            .iter()
            .map(|process| process.pid)
            .collect();
        assert_eq!(pids, [100, 101]);
    }

    #[test]
    fn a_process_that_does_not_accept_is_shown_and_not_the_timers_of_its_clients() {
        for id in ["application-not-accepting", "fd-exhaustion"] {
            assert_eq!(shown(id), Shown::Threads);
        }
        let pid = std::process::id();
        let drawing = threads(&finding(pid), &processes(&[(pid, 7)])).unwrap();
        assert!(
            drawing.of.contains(&format!("(pid {pid})")),
            "{}",
            drawing.of
        );
        let roots = drawing.stacks.iter().map(|stack| &*stack.frames[0]);
        assert!(roots.into_iter().all(|root| root == "server"));
    }

    #[test]
    fn no_finding_is_shown_by_what_only_follows_from_it() {
        for rule in RULES {
            let is_its_own = ["syn-retransmits", "path-loss"].contains(&rule.id);
            if let Shown::Events(kinds) = shown(rule.id) {
                assert!(
                    is_its_own || !kinds.contains(&Kind::Retransmits),
                    "{}",
                    rule.id
                );
            }
        }
    }
}
