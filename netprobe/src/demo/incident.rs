//! An incident that goes on: the stage made real, watched, and cured.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Scenario,
    cast::Actor,
    needs,
    network::{INTERFACE, Network, sysctl_path},
    stage::{Process, Sign, Stage},
    workload::Tally,
};
use crate::kernel::privileges::CannotRun;

/// How long an incident may take until it shows.
const SHOWS_WITHIN: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An incident that goes on until this is dropped.
#[derive(Debug)]
pub struct Incident {
    stage: Stage,
    network: Network,
    actors: Vec<Actor>,
    before: Vec<u64>,
    /// Sysctls of the machine as they were.
    machine: BTreeMap<&'static str, String>,
}

impl Incident {
    /// Sets the stage of `scenario` and lets it begin.
    ///
    /// What would change the whole machine is done only where that `is_disposable`.
    pub fn start(scenario: &Scenario, is_disposable: bool) -> Result<Self> {
        let stage = (scenario.stage)();
        if let Some((name, _)) = stage.machine.first().filter(|_| !is_disposable) {
            let why = format!(
                "{} needs {name}, which network namespaces do not have of their own: only on a \
                 disposable machine (cargo xtask vm), with --disposable",
                scenario.id
            );
            return Err(CannotRun::new(why).into());
        }
        for tool in stage.tools() {
            if find_tool(tool).is_none() {
                let why = format!("{} needs {tool}, which is not installed", scenario.id);
                return Err(CannotRun::new(why).into());
            }
        }
        let mut incident = Self {
            network: Network::new(stage.is_routed)?,
            stage: Stage::default(),
            actors: Vec::new(),
            before: Vec::new(),
            machine: BTreeMap::new(),
        };
        incident.become_(stage)?;
        Ok(incident)
    }

    /// Applies the cure, or the one after so many others: settings change, and processes whose
    /// settings change start again.
    pub fn cure(&mut self, scenario: &Scenario, others: usize) -> Result<()> {
        let cures = [scenario.cured]
            .into_iter()
            .chain(scenario.later.iter().copied());
        let stage = cures.take(others + 1).last().unwrap_or(scenario.cured);
        self.become_(stage())
    }

    /// Changes what differs between the stage that is and `stage`.
    fn become_(&mut self, stage: Stage) -> Result<()> {
        if self.stage.firewall != stage.firewall {
            self.set_firewall(&stage)?;
        }
        if self.stage.queues != stage.queues {
            self.set_queues(&stage)?;
        }
        // After the firewall, which brings conntrack and its sysctls.
        for setting in &stage.sysctls {
            if !self.stage.sysctls.contains(setting) {
                let (host, name, value) = setting;
                self.network.of(*host)?.set(name, value)?;
            }
        }
        for (name, value) in &stage.machine {
            let path = sysctl_path(name);
            if !self.machine.contains_key(name) {
                let old = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
                self.machine.insert(name, old);
            }
            fs::write(&path, value).with_context(|| format!("set {name} to {value:?}"))?;
        }
        for host in &stage.forgetful {
            self.network.of(*host)?.forget_connections()?;
        }
        self.stage = stage;
        let wanted = self.stage.processes.clone();
        self.actors.retain(|actor| wanted.contains(&actor.process));
        self.before = self
            .stage
            .signs
            .iter()
            .map(|sign| self.sum(sign))
            .collect::<Result<_>>()?;
        for process in &wanted {
            if !self.actors.iter().any(|actor| actor.process == *process) {
                let netns = self.network.of(process.host)?;
                self.actors.push(Actor::start(process, netns)?);
            }
        }
        Ok(())
    }

    fn set_firewall(&self, stage: &Stage) -> Result<()> {
        for (host, _) in &self.stage.firewall {
            self.network
                .of(*host)?
                .tool(&["nft", "-f", "-"], "flush ruleset\n")?;
        }
        for (host, rules) in &stage.firewall {
            self.network.of(*host)?.tool(&["nft", "-f", "-"], rules)?;
        }
        Ok(())
    }

    fn set_queues(&self, stage: &Stage) -> Result<()> {
        for (host, _) in &self.stage.queues {
            let netns = self.network.of(*host)?;
            netns.tool(&["tc", "qdisc", "del", "dev", INTERFACE, "root"], "")?;
        }
        for (host, discipline) in &stage.queues {
            let mut words = vec!["tc", "qdisc", "add", "dev", INTERFACE, "root"];
            words.extend(discipline.split(' '));
            let set = self.network.of(*host)?.tool(&words, "");
            set.map_err(|why| {
                let missing = needs::explain_queue(discipline, &why.to_string());
                missing.map_or(why, |missing| CannotRun::new(missing).into())
            })?;
        }
        Ok(())
    }

    /// Waits until every sign of the stage shows.
    pub fn wait_until_it_shows(&mut self) -> Result<()> {
        let deadline = Instant::now() + SHOWS_WITHIN;
        loop {
            for actor in &mut self.actors {
                actor.check()?;
            }
            let missing = self.missing()?;
            let Some(sign) = missing else {
                return Ok(());
            };
            if Instant::now() > deadline {
                let tallies: Vec<_> = self.tallies().collect();
                bail!("waited in vain for {sign:?}; so far: {tallies:?}");
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The first sign that does not show yet.
    fn missing(&self) -> Result<Option<Sign>> {
        for (sign, before) in self.stage.signs.iter().zip(&self.before) {
            if self.sum(sign)?.saturating_sub(*before) < sign.least() {
                return Ok(Some(*sign));
            }
        }
        Ok(None)
    }

    fn sum(&self, sign: &Sign) -> Result<u64> {
        let of = |name: &str| self.tally(name).unwrap_or_default();
        match *sign {
            Sign::Counter(host, name, _) => {
                let counters = self.network.of(host)?.run(counters)?;
                Ok(counters.get(name).copied().unwrap_or(0))
            }
            Sign::TimeWait(host, _) => self.network.of(host)?.run(time_wait),
            Sign::Failures(name, errno, _) => Ok(of(name).failed.get(&errno).copied().unwrap_or(0)),
            Sign::Answered(name, _) => Ok(of(name).answered),
            Sign::Started(name, _) => Ok(of(name).started),
            Sign::GaveUp(name, _) => Ok(of(name).gave_up),
        }
    }

    fn tally(&self, name: &str) -> Option<Tally> {
        let mut actors = self.actors.iter();
        actors.find(|actor| actor.process.name == name)?.tally()
    }

    /// How every process fares.
    pub fn tallies(&self) -> impl Iterator<Item = (&Process, Tally)> {
        let actors = self.actors.iter();
        actors.map(|actor| (&actor.process, actor.tally().unwrap_or_default()))
    }

    /// The processes.
    pub fn actors(&self) -> &[Actor] {
        &self.actors
    }

    /// The hosts.
    pub fn network(&self) -> &Network {
        &self.network
    }
}

impl Drop for Incident {
    fn drop(&mut self) {
        for (name, value) in &self.machine {
            if let Err(why) = fs::write(sysctl_path(name), value) {
                log::warn!("{name} stays changed: {why}");
            }
        }
    }
}

impl Sign {
    const fn least(self) -> u64 {
        match self {
            Self::Counter(_, _, least)
            | Self::TimeWait(_, least)
            | Self::Failures(_, _, least)
            | Self::Answered(_, least)
            | Self::Started(_, least)
            | Self::GaveUp(_, least) => least,
        }
    }
}

/// Where a program is, if it is installed.
pub fn find_tool(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Into::into);
    let mut folders = std::env::split_paths(&path).chain(usual);
    folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()))
}

/// The TCP and IP counters of the namespace of this thread, by `Group.Name`.
fn counters() -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for file in ["snmp", "netstat"] {
        let path = format!("/proc/thread-self/net/{file}");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut lines = text.lines();
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let group = names.split(':').next().unwrap_or_default();
            let pairs = names
                .split_whitespace()
                .zip(values.split_whitespace())
                .skip(1);
            all.extend(
                pairs.map(|(name, value)| (format!("{group}.{name}"), value.parse().unwrap_or(0))),
            );
        }
    }
    Ok(all)
}

/// Sockets in TIME_WAIT in the namespace of this thread.
fn time_wait() -> Result<u64> {
    let path = "/proc/thread-self/net/sockstat";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let tcp = text
        .lines()
        .find(|line| line.starts_with("TCP:"))
        .unwrap_or_default();
    let mut words = tcp.split_whitespace();
    words.find(|word| *word == "tw");
    Ok(words
        .next()
        .and_then(|count| count.parse().ok())
        .unwrap_or(0))
}
