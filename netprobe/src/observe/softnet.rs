//! The backlog of received packets of each CPU: `/proc/net/softnet_stat`, which is for the whole
//! machine.

use std::fs;

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

/// Every CPU's.
pub fn read() -> Vec<Softnet> {
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
