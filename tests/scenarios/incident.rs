//! An incident that `netprobe demo` keeps up, and what `netprobe diagnose` says about it.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use netprobe_tests::{
    PATIENCE,
    program::binary,
    skip::{is_disposable, is_root, skip},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::verdict::{Finding, Verdict};

/// How often it is looked whether a demo has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// netprobe's exit code when the environment lacks what was asked for.
const CANNOT_RUN: i32 = 3;

/// An incident that goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Incident {
    demo: Child,
    cues: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    hosts: Vec<Value>,
    processes: Vec<Value>,
}

impl Incident {
    /// Provokes an incident and waits until it shows; `None` where that cannot be done, and why is
    /// printed.
    pub(crate) fn provoke(id: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let is_disposable = is_disposable();
        let mut demo = Command::new(binary())
            .args(["demo", id, "--hold", "--json"])
            .args(is_disposable.then_some("--disposable"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run netprobe demo");
        let mut incident = Self {
            cues: demo.stdin.take(),
            lines: BufReader::new(demo.stdout.take().expect("standard output is a pipe")),
            demo,
            hosts: Vec::new(),
            processes: Vec::new(),
        };
        if incident.hear() {
            return Some(incident);
        }
        let mut complaint = String::new();
        let mut stderr = incident
            .demo
            .stderr
            .take()
            .expect("standard error is a pipe");
        stderr
            .read_to_string(&mut complaint)
            .expect("read its complaint");
        let status = incident.demo.wait().expect("wait for its end");
        assert_eq!(status.code(), Some(CANNOT_RUN), "{id}: {complaint}");
        skip(complaint.trim());
        None
    }

    /// Reads the next line that says where the incident is; false if the demo has ended.
    fn hear(&mut self) -> bool {
        let mut line = String::new();
        while self
            .lines
            .read_line(&mut line)
            .expect("read what the demo says")
            > 0
        {
            let said: Value = serde_json::from_str(&line).expect("the demo speaks JSON");
            if said["schema"] == "netprobe.demo/1" {
                self.hosts = said["hosts"].as_array().cloned().unwrap_or_default();
                self.processes = said["processes"].as_array().cloned().unwrap_or_default();
                return true;
            }
            line.clear();
        }
        false
    }

    /// What netprobe says is wrong, as far as it concerns this incident's hosts.
    #[track_caller]
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::next(&self.namespaces())
    }

    /// Inode numbers of the namespaces of all hosts.
    fn namespaces(&self) -> Vec<u64> {
        let hosts = self.hosts.iter();
        hosts.filter_map(|host| host["netns"].as_u64()).collect()
    }

    /// The namespace of a host.
    #[track_caller]
    pub(crate) fn netns(&self, host: &str) -> u64 {
        named(&self.hosts, host)["netns"]
            .as_u64()
            .expect("a number")
    }

    /// The process id of one of its processes.
    #[track_caller]
    pub(crate) fn pid(&self, process: &str) -> u64 {
        named(&self.processes, process)["pid"]
            .as_u64()
            .expect("a number")
    }

    /// Applies the cure that the demo knows: settings, and applications that start again.
    #[track_caller]
    pub(crate) fn cure(&mut self) {
        let cues = self.cues.as_mut().expect("the demo listens");
        cues.write_all(b"\n").expect("the demo listens");
        assert!(self.hear(), "the demo has ended instead of being cured");
    }

    /// Writes the sysctls of a finding's fixes on the host that it names, and nothing else.
    #[track_caller]
    pub(crate) fn set_what_helps(&self, finding: &Finding, host: &str) {
        let path = named(&self.hosts, host)["path"].as_str().expect("a path");
        let file = File::open(path).expect("open the namespace of a host");
        let sysctls = finding.sysctls();
        assert!(!sysctls.is_empty(), "no sysctl would help: {finding:?}");
        let write = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("enter a namespace");
            for (name, value) in &sysctls {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                std::fs::write(&path, value).unwrap_or_else(|why| panic!("{name}={value}: {why}"));
            }
        };
        thread::scope(|scope| scope.spawn(write).join()).expect("set what helps");
    }

    /// Waits until it stops no connections any more, though it may still be seen.
    #[track_caller]
    pub(crate) fn assert_not_critical(&self, id: &str) {
        self.assert_until("critical no more", |verdict| {
            verdict.finding(id).is_none_or(|found| !found.is_critical())
        });
    }

    /// Waits until a diagnosis no longer finds it; what went on before its cure takes a while to end.
    #[track_caller]
    pub(crate) fn assert_gone(&self, id: &str) {
        self.assert_until("gone", |verdict| verdict.finding(id).is_none());
    }

    /// Waits until nothing above info is found.
    #[track_caller]
    pub(crate) fn assert_quiet(&self) {
        self.assert_until("quiet", Verdict::has_nothing_serious);
    }

    /// The first verdict in which this finding is first.
    #[track_caller]
    pub(crate) fn verdict_when(&self, id: &str) -> Verdict {
        self.assert_until(id, |verdict| verdict.first_id() == Some(id))
    }

    /// The first verdict with this finding anywhere: timers have to run out first.
    #[track_caller]
    pub(crate) fn verdict_with(&self, id: &str) -> Verdict {
        self.assert_until(id, |verdict| verdict.finding(id).is_some())
    }

    #[track_caller]
    fn assert_until(&self, what: &str, is_so: impl Fn(&Verdict) -> bool) -> Verdict {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let verdict = self.verdict();
            if is_so(&verdict) {
                return verdict;
            }
            assert!(Instant::now() < deadline, "not {what}: {}", verdict.story());
        }
    }
}

impl Drop for Incident {
    fn drop(&mut self) {
        // At the end of its input it ends by itself, and puts back what it changed.
        drop(self.cues.take());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.demo.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(LOOK_EVERY);
        }
        self.demo.kill().ok();
        self.demo.wait().ok();
    }
}

#[track_caller]
fn named<'a>(all: &'a [Value], name: &str) -> &'a Value {
    let found = all.iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {all:?}"))
}
