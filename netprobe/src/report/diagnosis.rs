//! What `netprobe diagnose` found out: the only input of its renderers.

use std::{net::IpAddr, time::Duration};

use super::Probe;
use crate::diagnose;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing fails because of it.
    Info,
    /// It costs time or data, or will soon stop connections.
    Warning,
    /// Connections fail now.
    Critical,
}

impl Severity {
    /// Its name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// How sure the verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Counters allow other explanations.
    Low,
    /// Counters agree, but no event named the culprit.
    Medium,
    /// Events and counters agree, or the kernel counts exactly this.
    High,
}

impl Confidence {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// A number with what it measures, or a text where there is no number.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// What it says, with the number in it.
    pub text: String,
    /// The number alone.
    pub value: Option<f64>,
    /// Its unit.
    pub unit: &'static str,
    /// The event, counter, table or setting that it was read from.
    pub source: String,
}

/// Somebody or something that is hit, or does it.
#[derive(Clone, Debug, PartialEq)]
pub struct Affected {
    /// `listener`, `process`, `destination`, `source`, `interface`, `netns`, `cpu` or `table`.
    pub kind: &'static str,
    /// How people call it.
    pub name: String,
    /// Inode number of its network namespace.
    pub netns: Option<u32>,
    /// Its process.
    pub pid: Option<u32>,
    /// Name of that process.
    pub comm: Option<String>,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: Option<u16>,
}

/// What kind of change a fix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixKind {
    /// A kernel setting.
    Sysctl,
    /// A setting of the application or its unit.
    Application,
    /// Something to run or to look at.
    Command,
}

impl FixKind {
    /// Its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sysctl => "sysctl",
            Self::Application => "application",
            Self::Command => "command",
        }
    }
}

/// A change that would help, with the value that was computed. netprobe never makes it itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Fix {
    /// What kind.
    pub kind: FixKind,
    /// What to do, with the arithmetic.
    pub text: String,
    /// Settings and their new values.
    pub set: Vec<(String, String)>,
    /// What runs a command in the namespace that they are of: goes before it, and is empty for the initial one.
    pub enter: String,
    /// What may go wrong.
    pub risk: &'static str,
    /// Whether it helps as soon as it is made, with nothing to restart nor to write.
    pub is_at_once: bool,
}

/// A failure that was recognised.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Its id, as in `netprobe explain ID`.
    pub id: &'static str,
    /// How bad.
    pub severity: Severity,
    /// How sure.
    pub confidence: Confidence,
    /// The verdict in one sentence.
    pub summary: String,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// Who is hit.
    pub affected: Vec<Affected>,
    /// What to change, best first.
    pub fixes: Vec<Fix>,
    /// The id of the finding that has to be fixed first, if this one hides behind another.
    pub behind: Option<&'static str>,
    /// The destination that its processes wait for, in `connect()` or as the way there loses packets: what is wrong with that
    /// one comes first.
    pub awaits: Option<Affected>,
    /// Destinations whose packets it was seen to stop, or is bound to: more than are named among those that are hit.
    pub stops: Vec<Affected>,
}

/// What came of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The rule's id.
    pub id: &'static str,
    /// `ok`, `found` or `not-enough-data`.
    pub verdict: &'static str,
    /// Why: what was compared, what hides it, or what could not be seen.
    pub why: String,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its kernel release.
    pub kernel: String,
    /// CPUs that it has online.
    pub cpus: u32,
}

/// What netprobe itself took.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// CPU time of netprobe in the window, in percent of one CPU.
    pub cpu_percent: f64,
    /// What it may be, in percent of one CPU: `--max-overhead` is a share of the machine.
    pub limit_percent: f64,
    /// CPU time of netprobe in all: also before the window, to look at everything once, and after it until the verdict.
    pub cpu_time: Duration,
    /// Its largest resident memory.
    pub rss_kib: u64,
    /// From the end of the window to the verdict.
    pub verdict: Duration,
}

/// A diagnosis.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// The machine.
    pub host: Host,
    /// When the window began, in nanoseconds since the Unix epoch.
    pub started_unix_ns: i64,
    /// How long it was.
    pub window: Duration,
    /// Network namespaces that were watched.
    pub namespaces: usize,
    /// Every probe and what became of it.
    pub probes: Vec<Probe>,
    /// What could not be read, each a sentence.
    pub gaps: Vec<String>,
    /// What netprobe took.
    pub cost: Cost,
    /// What is wrong: what stops connections first comes first.
    pub findings: Vec<Finding>,
    /// Every rule.
    pub checked: Vec<Checked>,
}

impl Diagnosis {
    /// Why nobody can say whether anything so severe is wrong; `None` if one can.
    pub fn undecided(&self, least: Severity) -> Option<&'static str> {
        let mut findings = self.findings.iter();
        let mut checked = self.checked.iter();
        if findings.any(|finding| finding.severity >= least) {
            None
        } else if self.namespaces == 0 {
            Some("no network namespace could be read")
        } else if self.is_short() {
            Some("too short to say that all is well")
        } else if checked.all(|checked| checked.verdict != "ok") {
            Some("no kind of incident could be ruled out")
        } else {
            None
        }
    }

    /// Whether it was watched for so little time that only what was found can be told.
    pub fn is_short(&self) -> bool {
        self.window < diagnose::SHORTEST
    }

    /// Whether everything was watched and nothing was lost.
    pub fn is_complete(&self) -> bool {
        self.gaps.is_empty() && self.probes.iter().all(Probe::is_complete)
    }
}

/// What a finding means.
#[derive(Clone, Copy, Debug)]
pub struct Explained {
    /// Its id.
    pub id: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What people see.
    pub symptom: &'static str,
    /// How Linux gets there, with the functions of the kernel.
    pub cause: &'static str,
    /// How netprobe recognises it, and tells it from its neighbours.
    pub recognised: &'static str,
    /// What helps, and what may go wrong with it.
    pub fixes: &'static [(&'static str, &'static str)],
}

/// One of everything, with names that somebody chose badly.
#[cfg(test)]
#[expect(clippy::too_many_lines, reason = "one of everything")]
pub(crate) fn sample() -> Diagnosis {
    let hook = |state| super::Hook {
        sees: "something",
        required: true,
        state,
    };
    Diagnosis {
        host: Host {
            name: "web\u{1b}[2J".to_owned(),
            kernel: "6.12".to_owned(),
            cpus: 2,
        },
        started_unix_ns: 0,
        window: Duration::from_secs(10),
        namespaces: 1,
        probes: vec![Probe {
            name: "drops",
            about: "",
            weight: "",
            hooks: vec![hook(Ok("tp_btf")), hook(Err("no".to_owned()))],
            counters: netprobe_common::counters::Counters::ZERO,
            decode_errors: 1,
            filtered_user: 0,
            unwritten: 0,
            missed: None,
        }],
        gaps: vec!["something".to_owned()],
        cost: Cost {
            cpu_percent: 0.5,
            limit_percent: 2.0,
            cpu_time: Duration::from_millis(310),
            rss_kib: 1,
            verdict: Duration::ZERO,
        },
        findings: vec![Finding {
            id: "accept-queue-overflow",
            severity: Severity::Critical,
            confidence: Confidence::High,
            summary: "evil\nline".to_owned(),
            evidence: vec![Evidence {
                text: String::new(),
                value: Some(1.0),
                unit: "",
                source: String::new(),
            }],
            affected: vec![Affected {
                kind: "listener",
                name: "x".to_owned(),
                netns: Some(1),
                pid: None,
                comm: Some("\u{202e}x".to_owned()),
                address: None,
                port: Some(80),
            }],
            fixes: vec![Fix {
                kind: FixKind::Sysctl,
                text: String::new(),
                set: vec![("net.core.somaxconn".to_owned(), "128".to_owned())],
                enter: String::new(),
                risk: "none",
                is_at_once: false,
            }],
            behind: Some("conntrack-table-full"),
            awaits: None,
            stops: Vec::new(),
        }],
        checked: vec![Checked {
            id: "resets",
            verdict: "ok",
            why: String::new(),
        }],
    }
}
