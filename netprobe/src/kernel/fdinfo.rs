//! What `/proc/self/fdinfo` says about a program of ours.

use std::{fs, io, os::fd::AsRawFd, os::fd::BorrowedFd};

/// Figures of a loaded program. Absent on kernels that do not print them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Its id.
    pub id: Option<u32>,
    /// Nanoseconds it ran, while BPF statistics were on.
    pub run_time_ns: Option<u64>,
    /// Times it ran, while BPF statistics were on.
    pub run_cnt: Option<u64>,
    /// Times it was skipped because it was running on that CPU already (since 5.12).
    pub recursion_misses: Option<u64>,
}

impl FdInfo {
    /// Reads the figures of the program behind `fd`.
    pub fn read(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        Ok(Self::parse(&text))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value: Option<u64> = value.trim().parse().ok();
            match key {
                "prog_id" => info.id = value.and_then(|id| u32::try_from(id).ok()),
                "run_time_ns" => info.run_time_ns = value,
                "run_cnt" => info.run_cnt = value,
                "recursion_misses" => info.recursion_misses = value,
                _ => {}
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_absent_ones_stay_unknown() {
        let info = FdInfo::parse("pos:\t0\nprog_id:\t7\nrun_time_ns:\t120\nrun_cnt:\t3\n");
        assert_eq!(info.id, Some(7));
        assert_eq!(info.run_time_ns, Some(120));
        assert_eq!(info.run_cnt, Some(3));
        assert_eq!(info.recursion_misses, None);
    }
}
