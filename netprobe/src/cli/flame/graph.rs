//! The graphs of what tasks do: where their stacks come from, what their width is, and what is drawn of them.

use std::{sync::Arc, time::Duration};

use netprobe_common::samples::Sampling;

use super::copies::Counting;
use crate::{filter::Error, report::Palette};

/// Where the stacks come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A sample so often per CPU.
    Samples {
        /// Samples per second.
        hertz: u64,
    },
    /// Blocks between these lengths.
    Blocks {
        /// Shorter ones are left out.
        least: Duration,
        /// Longer ones are left out.
        most: Duration,
    },
}

/// A graph of tasks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Graph {
    pub(super) source: Source,
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) palette: Palette,
    /// Only what is under one of these functions of the kernel; all if there are none.
    pub(super) within: &'static [&'static str],
    /// Only what waits in `accept(2)`, which the programs see without a stack.
    pub(super) accepts: bool,
}

pub(super) const fn cpu(source: Source) -> Graph {
    Graph {
        source,
        title: "CPU Flame Graph",
        unit: "samples",
        palette: Palette::Java,
        within: &[],
        accepts: false,
    }
}

pub(super) const fn port_search(source: Source) -> Graph {
    Graph {
        source,
        title: "connect() Port-Search Cost",
        unit: "ns",
        palette: Palette::Hot,
        within: &[
            "inet_hash_connect",
            "inet6_hash_connect",
            "__inet_hash_connect",
        ],
        accepts: false,
    }
}

pub(super) const fn offcpu(source: Source) -> Graph {
    Graph {
        source,
        title: "Off-CPU Time Flame Graph",
        unit: "us",
        palette: Palette::Io,
        within: &[],
        accepts: false,
    }
}

pub(super) const fn accept_wait(source: Source) -> Graph {
    Graph {
        source,
        title: "Time Blocked in accept()",
        unit: "us",
        palette: Palette::Io,
        within: &["inet_csk_accept", "inet_csk_wait_for_connect"],
        accepts: true,
    }
}

impl Graph {
    /// What is counted.
    pub(super) const fn counting(&self) -> Counting {
        match self.source {
            Source::Samples { .. } => Counting::Samples,
            Source::Blocks { .. } => Counting::Blocks,
        }
    }

    /// Samples per second and CPU; none of blocks.
    pub(super) const fn hertz(&self) -> u64 {
        match self.source {
            Source::Samples { hertz } => hertz,
            Source::Blocks { .. } => 0,
        }
    }

    /// What it may mean that there is nothing to draw, where so many waits were too short or too long.
    pub(super) fn why_empty(&self, left_out: u64) -> String {
        match self.source {
            Source::Samples { .. } => {
                String::from("none of the wanted tasks was seen on a CPU there")
            }
            Source::Blocks { least, most } if left_out > 0 => format!(
                "what was to be drawn did not last from --min-block {least:?} to --max-block {most:?}: {left_out} waits were \
                 shorter or longer"
            ),
            Source::Blocks { .. } => String::from(
                "no wanted task began to wait there in the window: those that sleep through all of it are not seen; for these see \
                 /proc/PID/stack, or take a longer --duration",
            ),
        }
    }

    /// Refuses what could only give an empty picture.
    pub(super) fn check(&self, sampling: &Sampling) -> Result<(), Error> {
        if self.is_of_functions() && sampling.kernel == 0 {
            let why = "this graph is of functions of the kernel: it cannot be had with --user-only";
            return Err(Error::elsewhere(why));
        }
        match self.source {
            Source::Blocks { most, .. } if most.is_zero() => {
                Err(Error::elsewhere("--max-block 0 leaves nothing to draw"))
            }
            Source::Blocks { least, most } if least > most => {
                let why = format!("--min-block {least:?} is longer than --max-block {most:?}");
                Err(Error::elsewhere(why))
            }
            Source::Blocks { .. } | Source::Samples { .. } => Ok(()),
        }
    }

    /// The width of so many samples, which stand for `sample_ns` each or else for the time between them, or of
    /// so long a time.
    pub(super) const fn weight(&self, events: u64, ns: u64, sample_ns: Option<u64>) -> u64 {
        match (self.source, sample_ns) {
            (Source::Samples { .. }, _) if !self.is_of_functions() => events,
            (Source::Samples { .. }, Some(sample_ns)) => events * sample_ns,
            (Source::Samples { .. }, None) => ns,
            (Source::Blocks { .. }, _) => ns / 1000,
        }
    }

    /// Whether only what is under some functions of the kernel is drawn.
    pub(super) const fn is_of_functions(&self) -> bool {
        !self.within.is_empty()
    }

    /// Whether one of the functions is among these frames.
    pub(super) fn is_within(&self, frames: &[Arc<str>]) -> bool {
        frames.iter().any(|frame| {
            frame
                .strip_suffix("_[k]")
                .is_some_and(|function| self.within.contains(&function))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_only_be_empty_is_refused() {
        let blocks = |least, most| Source::Blocks {
            least: Duration::from_secs(least),
            most: Duration::from_secs(most),
        };
        let user_only = Sampling::NONE;
        let both = Sampling {
            kernel: 1,
            ..Sampling::NONE
        };
        let samples = Source::Samples { hertz: 99 };
        for graph in [accept_wait(blocks(0, 9)), port_search(samples)] {
            let refused = graph.check(&user_only).unwrap_err().to_string();
            assert!(refused.contains("--user-only"), "{refused}");
            assert!(graph.check(&both).is_ok());
        }
        assert!(cpu(samples).check(&user_only).is_ok());
        let refused = offcpu(blocks(10, 1)).check(&both).unwrap_err().to_string();
        assert!(refused.starts_with("--min-block 10s is longer than --max-block 1s"));
        let refused = offcpu(blocks(0, 0)).check(&both).unwrap_err().to_string();
        assert!(refused.starts_with("--max-block 0 leaves nothing"));
    }

    #[test]
    fn an_empty_graph_of_blocks_says_who_is_not_seen() {
        let source = Source::Blocks {
            least: Duration::ZERO,
            most: Duration::MAX,
        };
        assert!(accept_wait(source).why_empty(0).contains("/proc/PID/stack"));
    }

    #[test]
    fn an_empty_graph_says_that_its_waits_were_too_short() {
        let source = Source::Blocks {
            least: Duration::from_secs(1),
            most: Duration::from_hours(1),
        };
        let why = offcpu(source).why_empty(413);
        assert!(
            why.contains("--min-block 1s") && why.contains("413 waits were shorter"),
            "{why}"
        );
        assert!(!why.contains("began to wait"), "{why}");
    }
}
