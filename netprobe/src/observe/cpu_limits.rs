//! What control groups allow a process of the CPUs: bandwidth control (`cpu.max`, in version 1 `cpu.cfs_quota_us`) and the
//! freezer. From `/proc/PID/cgroup` and the folders that it names, from the process's own group up to the root.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// What the groups of a process allow it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuLimits {
    /// The lowest limit.
    pub bandwidth: Option<Bandwidth>,
    /// Whether a group is frozen: the file that thaws it, and what is to be written to it.
    pub frozen: Option<Freezer>,
}

/// The limit of a group, and how often it was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// The file with the limit.
    pub file: PathBuf,
    /// CPU time that it may use in each period, in microseconds.
    pub quota_us: u64,
    /// How long a period is, in microseconds.
    pub period_us: u64,
    /// Periods so far in which something ran (`nr_periods` of `cpu.stat`).
    pub periods: u64,
    /// Of those, ones in which the time was used up (`nr_throttled`).
    pub throttled: u64,
}

/// The file that holds a group still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    /// The file.
    pub file: PathBuf,
    /// What lets the group go on.
    pub thaw: &'static str,
}

impl Bandwidth {
    /// CPUs that it may use.
    #[expect(clippy::cast_precision_loss, reason = "seconds, as a rule")]
    pub fn cpus(&self) -> f64 {
        self.quota_us as f64 / self.period_us.max(1) as f64
    }
}

impl CpuLimits {
    /// What the groups in `/proc/PID/cgroup` allow.
    pub fn of(groups: &str) -> Self {
        Self::below(Path::new(ROOT), groups)
    }

    fn below(root: &Path, groups: &str) -> Self {
        let mut limits = Self::default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            // Beyond the root of a namespace of control groups.
            if path.contains("/..") {
                continue;
            }
            let has = |wanted| controllers.split(',').any(|name| name == wanted);
            if controllers.is_empty() {
                let mounts = [root.to_owned(), root.join("unified")];
                let mut mounts = mounts.iter();
                if let Some(mount) = mounts.find(|at| at.join("cgroup.controllers").exists()) {
                    limits.add(mount, path, bandwidth, frozen);
                }
            }
            if has("cpu") {
                let mounts = [root.join(controllers), root.join("cpu")];
                if let Some(mount) = mounts.iter().find(|at| at.exists()) {
                    limits.add(mount, path, bandwidth_1, |_| None);
                }
            }
            if has("freezer") {
                limits.add(&root.join("freezer"), path, |_| None, frozen_1);
            }
        }
        limits
    }

    /// Adds what a group and those above it say.
    fn add(
        &mut self,
        mount: &Path,
        path: &str,
        bandwidth: impl Fn(&Path) -> Option<Bandwidth>,
        frozen: impl Fn(&Path) -> Option<Freezer>,
    ) {
        let group = mount.join(path.trim_start_matches('/'));
        let groups = || {
            group
                .ancestors()
                .take_while(|group| group.starts_with(mount))
        };
        let limits = groups().filter_map(bandwidth);
        let limits = self.bandwidth.take().into_iter().chain(limits);
        self.bandwidth = limits.min_by(|a, b| a.cpus().total_cmp(&b.cpus()));
        self.frozen = self.frozen.take().or_else(|| groups().find_map(frozen));
    }
}

fn read(group: &Path, name: &str) -> Option<String> {
    fs::read_to_string(group.join(name)).ok()
}

fn number(group: &Path, name: &str) -> Option<u64> {
    read(group, name)?.trim().parse().ok()
}

/// `cpu.max` is `max 100000` where there is no limit.
fn bandwidth(group: &Path) -> Option<Bandwidth> {
    let limit = read(group, "cpu.max")?;
    let mut words = limit.split_ascii_whitespace();
    let quota_us = words.next()?.parse().ok()?;
    let period_us = words.next()?.parse().ok()?;
    Some(counted(group, "cpu.max", quota_us, period_us))
}

/// `cpu.cfs_quota_us` is -1 where there is no limit.
fn bandwidth_1(group: &Path) -> Option<Bandwidth> {
    let quota_us = number(group, "cpu.cfs_quota_us")?;
    let period_us = number(group, "cpu.cfs_period_us")?;
    Some(counted(group, "cpu.cfs_quota_us", quota_us, period_us))
}

fn counted(group: &Path, file: &str, quota_us: u64, period_us: u64) -> Bandwidth {
    let stat = read(group, "cpu.stat").unwrap_or_default();
    let count = |name| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(found, _)| *found == name);
        found.map_or(0, |(_, count)| count.trim().parse().unwrap_or(0))
    };
    Bandwidth {
        file: group.join(file),
        quota_us,
        period_us,
        periods: count("nr_periods"),
        throttled: count("nr_throttled"),
    }
}

fn frozen(group: &Path) -> Option<Freezer> {
    (number(group, "cgroup.freeze")? == 1).then(|| Freezer {
        file: group.join("cgroup.freeze"),
        thaw: "0",
    })
}

fn frozen_1(group: &Path) -> Option<Freezer> {
    (number(group, "freezer.self_freezing")? == 1).then(|| Freezer {
        file: group.join("freezer.state"),
        thaw: "THAWED",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy with these files.
    fn mounted(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = root.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn the_lowest_limit_above_a_process_counts() {
        let root = mounted(&[
            ("cgroup.controllers", "cpu\n"),
            ("pod/cpu.max", "20000 100000\n"),
            (
                "pod/cpu.stat",
                "usage_usec 5\nnr_periods 40\nnr_throttled 39\n",
            ),
            ("pod/app/cpu.max", "max 100000\n"),
            ("pod/cgroup.freeze", "0\n"),
        ]);
        let limits = CpuLimits::below(root.path(), "0::/pod/app\n");
        let bandwidth = limits.bandwidth.unwrap();
        assert!((bandwidth.cpus() - 0.2).abs() < 1e-9, "{bandwidth:?}");
        assert_eq!((bandwidth.periods, bandwidth.throttled), (40, 39));
        assert_eq!(bandwidth.file, root.path().join("pod/cpu.max"));
        assert_eq!(limits.frozen, None);
    }

    #[test]
    fn a_frozen_group_is_told_by_the_file_that_thaws_it() {
        let root = mounted(&[
            ("unified/cgroup.controllers", ""),
            ("unified/pod/cgroup.freeze", "1\n"),
            ("unified/pod/app/cgroup.freeze", "0\n"),
        ]);
        let limits = CpuLimits::below(root.path(), "1:cpu:/\n0::/pod/app\n");
        let file = limits.frozen.unwrap().file;
        assert_eq!(file, root.path().join("unified/pod/cgroup.freeze"));
    }

    #[test]
    fn version_1_has_hierarchies_of_its_own() {
        let root = mounted(&[
            ("cpu,cpuacct/docker/a/cpu.cfs_quota_us", "5000\n"),
            ("cpu,cpuacct/docker/a/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/docker/cpu.cfs_quota_us", "-1\n"),
            ("freezer/docker/a/freezer.self_freezing", "1\n"),
        ]);
        let groups = "4:cpu,cpuacct:/docker/a\n3:freezer:/docker/a\n2:pids:/docker/a\n0::/\n";
        let limits = CpuLimits::below(root.path(), groups);
        let quota_us = limits.bandwidth.unwrap().quota_us;
        assert_eq!(quota_us, 5000);
        assert_eq!(limits.frozen.unwrap().thaw, "THAWED");
        assert_eq!(
            CpuLimits::below(root.path(), "nonsense\n3:cpu:/../x\n"),
            CpuLimits::default()
        );
    }
}
