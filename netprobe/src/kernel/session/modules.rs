//! Hooks in modules: they are attached when their module is loaded, and go with it when it is unloaded.

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path};

use super::{
    super::attach::{self, Attached},
    Session,
};
use crate::probes::Hook;

const CONNTRACK: &str = "nf_conntrack";

/// What became of hooks in a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The module was loaded, and its hooks are attached.
    Loaded,
    /// It was unloaded and loaded again in the meantime.
    LoadedAgain,
    /// It was unloaded.
    Unloaded,
}

impl Change {
    /// How grave that is.
    pub const fn level(self) -> log::Level {
        match self {
            Self::Loaded => log::Level::Info,
            Self::LoadedAgain | Self::Unloaded => log::Level::Warn,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Loaded => "a module was loaded; its probes are attached",
            Self::LoadedAgain => {
                "a module was loaded again; its probes are attached again, and may have missed a second"
            }
            Self::Unloaded => "a module was unloaded; its probes see nothing until it is loaded again",
        })
    }
}

impl Session {
    /// Tries again to attach what waits for a module, and what a module has taken with it; says what changed.
    pub fn attach_modules(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for probe in 0..self.probes.len() {
            for index in 0..self.probes[probe].1.len() {
                let attached = &self.probes[probe].1[index];
                let Some(module) = attached.hook.module else {
                    continue;
                };
                let hook = attached.hook;
                let wants = wanted(attached, self.instance(module));
                if wants.is_none() {
                    continue;
                }
                self.has_lost_module |= wants != Some(Change::Loaded);
                // Programs in a module that is gone are not called any more, whatever is loaded in its place.
                attach::unload(&mut self.ebpf, hook);
                let attached = self.attach(hook);
                changes.extend(
                    wants.filter(|wants| *wants == Change::Unloaded || attached.result.is_ok()),
                );
                self.probes[probe].1[index] = attached;
            }
        }
        changes
    }

    /// Attaches a hook, if the module that it is in is there.
    pub(super) fn attach(&mut self, hook: &'static Hook) -> Attached {
        let Some(module) = hook.module else {
            return attach::attach(&mut self.ebpf, self.btf.as_ref(), &mut self.ways, hook);
        };
        let instance = self.instance(module);
        if instance.is_none() {
            return Attached::refused(hook, format!("module {module} is not loaded"));
        }
        let attached = attach::attach(&mut self.ebpf, self.btf.as_ref(), &mut self.ways, hook);
        Attached {
            instance,
            ..attached
        }
    }

    /// What tells a module from the same one loaded at another time: 0 where it is built in, or else the number of its
    /// folder, which is made anew each time; none while it is not there.
    fn instance(&self, module: &str) -> Option<u64> {
        if module == CONNTRACK && self.has_builtin_conntrack {
            return Some(0);
        }
        let folder = fs::metadata(Path::new("/sys/module").join(module));
        folder.ok().map(|folder| folder.ino())
    }
}

/// What has to become of a hook, whose module is now this one.
fn wanted(attached: &Attached, instance: Option<u64>) -> Option<Change> {
    match (&attached.result, instance) {
        (Ok(_), now) if now == attached.instance => None,
        (Ok(_), None) => Some(Change::Unloaded),
        (Ok(_), Some(_)) => Some(Change::LoadedAgain),
        (Err(_), Some(_)) => Some(Change::Loaded),
        (Err(_), None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::conntrack::SPEC;

    #[test]
    fn hooks_follow_their_module_even_if_it_was_not_seen_to_be_gone() {
        let hook = &SPEC.hooks[0];
        let attached = Attached {
            instance: Some(7),
            ..Attached::elsewhere(hook, hook.ways[0])
        };
        assert_eq!(wanted(&attached, Some(7)), None);
        assert_eq!(wanted(&attached, None), Some(Change::Unloaded));
        assert_eq!(wanted(&attached, Some(8)), Some(Change::LoadedAgain));
        let waiting = Attached::refused(hook, "module nf_conntrack is not loaded".into());
        assert_eq!(wanted(&waiting, None), None);
        assert_eq!(wanted(&waiting, Some(7)), Some(Change::Loaded));
    }
}
