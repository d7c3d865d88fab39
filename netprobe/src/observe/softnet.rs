//! The backlog of received packets of each CPU: `/proc/net/softnet_stat`, which is for the whole
//! machine.

use std::{collections::HashMap, fs};

/// What one CPU has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Softnet {
    /// The CPU; the line number where the kernel does not say (before 5.10).
    pub cpu: u32,
    /// Packets processed.
    pub processed: u32,
    /// Packets dropped because the backlog was full (`net.core.netdev_max_backlog`).
    pub dropped: u32,
    /// Times that work was left when the budget of a round was spent (`net.core.netdev_budget`).
    pub squeezed: u32,
}

/// What one CPU did in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// At the beginning.
    pub before: Softnet,
    /// At the end.
    pub after: Softnet,
    /// Most packets that were dropped between two looks.
    pub burst: u32,
    /// The share of its time that it had nothing to do, from 0 to 1, where the kernel says it.
    pub idle: Option<f64>,
}

/// All CPUs, looked at again and again.
#[derive(Debug)]
pub struct Watch {
    cpus: Vec<Cpu>,
    times: HashMap<u32, Times>,
}

impl Watch {
    /// Begins with what was counted so far.
    pub fn start() -> Self {
        let begin = |now| Cpu {
            before: now,
            after: now,
            ..Cpu::default()
        };
        Self {
            cpus: read().into_iter().map(begin).collect(),
            times: times(),
        }
    }

    /// Looks again. A CPU that has gone shows nothing more, and one that came nothing yet.
    pub fn look(&mut self) {
        let now: HashMap<u32, Softnet> = read().into_iter().map(|now| (now.cpu, now)).collect();
        for cpu in &mut self.cpus {
            if let Some(now) = now.get(&cpu.after.cpu) {
                cpu.burst = cpu.burst.max(now.dropped.wrapping_sub(cpu.after.dropped));
                cpu.after = *now;
            }
        }
    }

    /// Looks for the last time.
    pub fn finish(mut self) -> Vec<Cpu> {
        self.look();
        let now = times();
        for cpu in &mut self.cpus {
            let number = cpu.after.cpu;
            let both = self.times.get(&number).zip(now.get(&number));
            cpu.idle = both.and_then(|(before, now)| now.idle_since(*before));
        }
        self.cpus
    }
}

/// How a CPU has spent its time so far, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    idle: u64,
    all: u64,
}

impl Times {
    fn idle_since(self, before: Self) -> Option<f64> {
        let all = self.all.checked_sub(before.all).filter(|all| *all > 0)?;
        // The kernel may take some of it back.
        let idle = self.idle.saturating_sub(before.idle);
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        Some((idle as f64 / all as f64).min(1.0))
    }
}

/// Every CPU's, as `/proc/stat` shows them.
fn times() -> HashMap<u32, Times> {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().filter_map(time).collect()
}

/// A line of `/proc/stat` as proc_stat(5) has it: `cpuN user nice system idle iowait irq softirq steal ...`, where what
/// follows is part of the first two.
fn time(line: &str) -> Option<(u32, Times)> {
    let (number, values) = line.strip_prefix("cpu")?.split_once(' ')?;
    let values: Vec<u64> = values
        .split_ascii_whitespace()
        .take(8)
        .map_while(|value| value.parse().ok())
        .collect();
    let idle = values.get(3)?.checked_add(*values.get(4)?)?;
    let all = values
        .iter()
        .try_fold(0_u64, |sum, value| sum.checked_add(*value))?;
    Some((number.parse().ok()?, Times { idle, all }))
}

/// Every CPU's.
fn read() -> Vec<Softnet> {
    parse(&fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default())
}

pub(crate) fn parse(text: &str) -> Vec<Softnet> {
    let lines = text.lines().zip(0..).filter_map(|(line, number)| {
        let values: Vec<u32> = line
            .split_ascii_whitespace()
            .filter_map(|hex| u32::from_str_radix(hex, 16).ok())
            .collect();
        Some(Softnet {
            cpu: values.get(12).copied().unwrap_or(number),
            processed: *values.first()?,
            dropped: *values.get(1)?,
            squeezed: *values.get(2)?,
        })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_that_of_one_cpu_and_includes_waiting_for_disks() {
        let of = |line| time(line).unwrap();
        let (number, before) = of("cpu3 10 0 10 70 10 0 0 0 0 0");
        let (_, after) = of("cpu3 10 0 40 100 20 0 30 0 7 0");
        assert_eq!(number, 3);
        assert_eq!(after.idle_since(before), Some(0.4));
        assert_eq!(before.idle_since(before), None);
        assert_eq!(time("cpu  1 2 3 4 5 6 7 8"), None);
        assert_eq!(time("cpu0 1 2 3"), None);
        assert_eq!(time("intr 1 2 3 4 5"), None);
    }

    #[test]
    fn old_and_new_lines_are_read() {
        let text = "00000010 00000002 00000003\n00000020 0 1 0 0 0 0 0 0 0 0 0 00000007 0 0\nx\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].cpu, found[0].dropped, found[0].squeezed),
            (0, 2, 3)
        );
        assert_eq!((found[1].cpu, found[1].processed), (7, 0x20));
    }
}
