//! A service that closes connections once they have been without data for some time: what a client sends at that very
//! moment is reset, in whatever way the service closes.

use super::{
    super::super::{
        farewells::is_farewell,
        sizing::median,
        window::{Netns, Window},
    },
    LEAST,
    closed_early::CAUSES,
};
use crate::{diagnose::events::Event, report::diagnosis::Finding};

/// Who pauses for less is still talking.
const QUIET_NS: u64 = 500_000_000;
/// Times of one timeout differ by no more than this part, and by the way of what crosses it.
const SPREAD: f64 = 0.5;

/// How long connections of a service had been without data when it closed them.
pub(super) struct Pauses {
    seen: usize,
    first_s: f64,
    median_s: f64,
    last_s: f64,
}

impl Pauses {
    /// Of the connections at a port that were closed early, where most had been quiet, and data came only then. A
    /// service that says farewell when it closes (TLS) has not been without data, but without requests.
    fn of(window: &Window, netns: &Netns, port: u16) -> Option<Self> {
        let requests: Vec<&Event> = window
            .events
            .within("resets", netns.inode)
            .filter(|reset| {
                reset.small("sport") == Some(port)
                    && CAUSES.iter().any(|cause| reset.is("cause", cause))
                    && !is_farewell(reset)
            })
            .collect();
        let since = |name| Self::since(&requests, name);
        since("idle_ns").or_else(|| since("lastrcv_ns").filter(Self::are_alike))
    }

    /// Of these resets, by the time that is called so.
    fn since(resets: &[&Event], name: &str) -> Option<Self> {
        let known = resets.iter().filter(|reset| reset.number(name).is_some());
        let all = known.count();
        let late = resets
            .iter()
            .filter(|reset| reset.is("cause", "data-after-close"));
        Self::among(late.filter_map(|reset| reset.number(name)), all)
    }

    /// Of these times in nanoseconds, if most of `all` connections had been quiet.
    pub(super) fn among(times: impl Iterator<Item = u64>, all: usize) -> Option<Self> {
        let mut quiet: Vec<u64> = times.filter(|ns| *ns >= QUIET_NS).collect();
        if (quiet.len() as u64) < LEAST || quiet.len() * 2 < all {
            return None;
        }
        quiet.sort_unstable();
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let seconds = |ns: u64| ns as f64 / 1e9;
        // A few of them may have been closed for another reason.
        let tenth = quiet.len() / 10;
        Some(Self {
            seen: quiet.len(),
            first_s: seconds(quiet[tenth]),
            median_s: seconds(median(&quiet)?),
            last_s: seconds(quiet[quiet.len() - 1 - tenth]),
        })
    }

    /// Whether they are those of one timeout.
    fn are_alike(&self) -> bool {
        self.last_s - self.first_s <= self.first_s * SPREAD
    }

    /// The timeout in seconds, if it is one.
    pub(super) fn timeout_s(&self) -> Option<f64> {
        self.are_alike().then_some(self.first_s)
    }

    pub(super) fn words(&self) -> String {
        span(self.first_s, self.last_s)
    }
}

/// From the shortest to the longest of some times in seconds, in words.
pub(super) fn span(first_s: f64, last_s: f64) -> String {
    let [first, last] = [first_s, last_s].map(|s| format!("{s:.1}"));
    if first == last {
        return format!("{first} s");
    }
    format!("{first} to {last} s")
}

/// Says of resets at a listener that an idle timeout of it is why, and what helps then, if so.
pub(super) fn told(window: &Window, netns: &Netns, found: Finding, port: u16) -> Finding {
    let Some(pauses) = Pauses::of(window, netns, port) else {
        return found;
    };
    let (timeout, sooner) = match pauses.timeout_s() {
        Some(s) => (
            format!("an idle timeout of {s:.1} s there"),
            format!("well before {s:.1} s"),
        ),
        None => (
            "it ends connections that are idle".to_owned(),
            "sooner than the service does".to_owned(),
        ),
    };
    let mut found = found.measured(
        format!(
            "{} of those that were looked at had been without a request for {}, in the middle {:.1} s",
            pauses.seen,
            pauses.words(),
            pauses.median_s
        ),
        pauses.median_s,
        "s",
        "resets",
    );
    found.summary = format!(
        "{}; they had been without a request for {}: {timeout}, which the next request of its clients crosses on its way",
        found.summary,
        pauses.words()
    );
    found.fixes.clear();
    found
        .application(
            format!(
                "have the clients' pool give up idle connections {sooner}, and try again on another what it may send twice"
            ),
            &[],
            "more new connections",
        )
        .application(
            "or raise the idle (keep-alive) timeout of the service above that of its clients' pools, or their longest pause",
            &[],
            "more open connections there",
        )
}
