//! What a run wants from the kernel.

use std::collections::HashSet;

use netprobe_common::config::Config;

use super::super::{load::Sizes, namer, sampler};
use crate::probes::{Attach, Hook, ProbeSpec};

/// What a run wants from the kernel.
#[derive(Clone, Debug)]
pub struct Request {
    /// The probes to attach.
    pub probes: Vec<&'static ProbeSpec>,
    /// What the programs do.
    pub config: Config,
    /// How large the maps are.
    pub sizes: Sizes,
    /// A hook to load now and attach in windows.
    pub windowed: Option<&'static Hook>,
}

impl Request {
    /// Names of the programs that may come to use.
    pub(super) fn programs(&self) -> HashSet<&'static str> {
        let of_hooks = attaches(self.hooks()).map(|attach| attach.program);
        // Who asks for no hook samples.
        let is_sampled = self.hooks().next().is_none();
        let sampling = [sampler::PROGRAM, namer::PROGRAM].into_iter();
        of_hooks
            .chain(sampling.filter(|_program| is_sampled))
            .collect()
    }

    /// What programs may attach to by its type.
    pub(super) fn typed_targets(&self) -> HashSet<String> {
        attaches(self.hooks())
            .filter_map(Attach::type_name)
            .collect()
    }

    fn hooks(&self) -> impl Iterator<Item = &'static Hook> {
        self.probes
            .iter()
            .flat_map(|spec| spec.hooks)
            .chain(self.windowed)
    }
}

pub(super) fn attaches(
    hooks: impl Iterator<Item = &'static Hook>,
) -> impl Iterator<Item = &'static Attach> {
    let ways = hooks.flat_map(|hook| hook.ways);
    ways.flat_map(|way| way.iter())
}
