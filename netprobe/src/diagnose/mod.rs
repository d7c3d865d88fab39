//! From what was seen to what is wrong: rules, each a pure function of a [`window::Window`], and
//! the order in which their findings must be read.

mod accepting;
mod attempts;
mod bufferbloat;
mod causality;
mod clashes;
mod cpu_time;
mod dropped;
mod ended;
pub mod events;
mod farewells;
mod fifo;
mod finding;
mod halted;
mod links;
mod overflow;
mod pause;
mod places;
mod ports;
mod received;
mod resent;
mod rules;
mod senders;
mod sizing;
mod slow_requests;
mod stalled;
mod syn_backlog;
mod tiers;
mod translated;
pub mod window;
mod workers;
mod zero_window;

#[cfg(test)]
mod fixtures;

use std::time::Duration;

use window::{Gap, Netns, Window};

use crate::report::{
    Value,
    diagnosis::{Checked, Explained, Finding},
};

/// What a rule says.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Not the case.
    Ok,
    /// Not the case, for a reason that is worth reading.
    OkBecause(String),
    /// The case, once or several times.
    Found(Vec<Finding>),
    /// What the rule needs could not be seen.
    NotEnoughData(String),
}

/// An incident that can be recognised.
#[derive(Debug)]
pub struct Rule {
    /// Its id on the command line and in JSON.
    pub id: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Whether it is the case.
    check: fn(&Window) -> Verdict,
    /// What to say when asked.
    explanation: Explanation,
}

impl Rule {
    /// What `netprobe explain` says.
    pub const fn explained(&self) -> Explained {
        let Explanation {
            symptom,
            cause,
            recognised,
            fixes,
        } = self.explanation;
        Explained {
            id: self.id,
            title: self.title,
            symptom,
            cause,
            recognised,
            fixes,
        }
    }
}

/// The parts of [`Explained`] that each rule writes.
#[derive(Clone, Copy, Debug)]
struct Explanation {
    symptom: &'static str,
    cause: &'static str,
    recognised: &'static str,
    fixes: &'static [(&'static str, &'static str)],
}

/// The rule with this id.
pub fn rule(id: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.id == id).copied()
}

pub use rules::RULES;

/// What was watched for less time has shown nothing of what happens now and then.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// Asks every rule and puts the findings in order.
pub fn diagnose(window: &Window) -> (Vec<Finding>, Vec<Checked>) {
    let short = too_short(window);
    let mut findings = Vec::new();
    let mut checked = Vec::new();
    for rule in RULES {
        let (verdict, why) = match (rule.check)(window) {
            Verdict::Ok | Verdict::OkBecause(_) if let Some(why) = &short => {
                ("not-enough-data", why.clone())
            }
            Verdict::Ok => match vanished(window).or_else(|| unread(window)) {
                Some(Gap(why)) => ("not-enough-data", why),
                None => ("ok", String::new()),
            },
            Verdict::OkBecause(why) => ("ok", why),
            Verdict::NotEnoughData(why) => ("not-enough-data", why),
            Verdict::Found(found) => {
                let why = found
                    .first()
                    .map_or_else(String::new, |finding| finding.summary.clone());
                findings.extend(found);
                ("found", why)
            }
        };
        checked.push(Checked {
            id: rule.id,
            verdict,
            why,
        });
    }
    let mut findings = links::told(findings, window);
    finding::keep_raises(&mut findings, window);
    finding::place_settings(&mut findings, window);
    causality::order(&mut findings, window);
    causality::mark_hidden(&findings, &mut checked);
    (findings, checked)
}

/// Why nothing can be said to be in order after a window of next to no time. What was found in it is found.
fn too_short(window: &Window) -> Option<String> {
    (window.seconds < SHORTEST.as_secs_f64()).then(|| {
        format!(
            "{:.1} s of watching are too short to rule it out",
            window.seconds
        )
    })
}

/// A namespace that ended in the window although it was busy: nobody can say that nothing was wrong
/// in it, as its counters went with it.
fn vanished(window: &Window) -> Option<Gap> {
    window.vanished.iter().find_map(|inode| {
        let group = [("netns", inode.to_string())];
        let group = group.each_ref().map(|(name, word)| (*name, word.as_str()));
        let mut totals = window.events.totals.iter();
        let is_busy = totals.any(|total| {
            window
                .events
                .groups(total.kind, &group)
                .any(|total| total.events > 0)
        });
        is_busy.then(|| {
            Gap(format!(
                "namespace {inode} ended in the window, and its counters with it"
            ))
        })
    })
}

/// A namespace that could not be read although it was busy.
fn unread(window: &Window) -> Option<Gap> {
    let why = window.unread.as_ref()?;
    let is_read = |inode| {
        let mut namespaces = window.namespaces.iter();
        namespaces.any(|netns| u64::from(netns.inode) == inode)
    };
    let mut totals = window.events.totals.iter();
    totals.find_map(|total| match events::value_of(total, "netns") {
        Value::Unsigned(inode) if total.events > 0 && !is_read(*inode) => Some(Gap(format!(
            "namespace {inode} was busy and could not be read: {why}"
        ))),
        _ => None,
    })
}

/// Asks in each namespace. What was found counts more than what could not be seen elsewhere.
fn in_each<'a>(
    window: &'a Window,
    mut check: impl FnMut(&'a Netns) -> Result<Vec<Finding>, Gap>,
) -> Verdict {
    let mut found = Vec::new();
    let mut gap = None;
    for netns in &window.namespaces {
        match check(netns) {
            Ok(findings) => found.extend(findings),
            Err(Gap(why)) => {
                gap.get_or_insert_with(|| format!("{why}{}", netns.place()));
            }
        }
    }
    match gap {
        _ if !found.is_empty() => Verdict::Found(found),
        Some(why) => Verdict::NotEnoughData(why),
        None if window.namespaces.is_empty() => {
            Verdict::NotEnoughData("no network namespace could be read".to_owned())
        }
        None => Verdict::Ok,
    }
}
