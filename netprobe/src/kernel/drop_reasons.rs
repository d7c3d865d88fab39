//! Names of drop reasons. They are renumbered with every kernel, so they come from its BTF.

use std::{collections::HashMap, sync::Arc};

use super::btf::KernelBtf;
use crate::{filter::KnownReasons, report::Value};

const CORE: &str = "skb_drop_reason";

/// Subsystems number their own reasons, in enums of their own, and some of them in modules.
const SUBSYSTEMS: &[(&str, &str)] = &[
    ("mac80211_drop_reason", "mac80211"),
    ("ovs_drop_reason", "openvswitch"),
    ("qdisc_drop_reason", "sch_generic"),
];

/// The types that [`DropReasons::read`] asks for.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(CORE).chain(SUBSYSTEMS.iter().map(|(reasons, _)| *reasons))
}

/// Names by number.
#[derive(Clone, Debug, Default)]
pub struct DropReasons {
    names: HashMap<u32, Arc<str>>,
}

impl DropReasons {
    /// Reads the names from the kernel's BTF; none before 5.17, where drops had no reasons.
    pub fn read(btf: &KernelBtf) -> Self {
        let mut names = HashMap::new();
        for (name, value) in btf.enum_values(CORE).unwrap_or_default() {
            let short = name
                .strip_prefix("SKB_DROP_REASON_")
                .or(name.strip_prefix("SKB_"));
            names.insert(value, Arc::from(short.unwrap_or(&name)));
        }
        for (reasons, module) in SUBSYSTEMS {
            let found = btf
                .enum_values(reasons)
                .or_else(|| btf.module(module).and_then(|btf| btf.enum_values(reasons)));
            for (name, value) in found.unwrap_or_default() {
                let short = name.strip_prefix("SKB_DROP_REASON_").unwrap_or(&name);
                names.entry(value).or_insert_with(|| Arc::from(short));
            }
        }
        Self { names }
    }

    /// The name of a reason; the number where this kernel names none.
    pub fn name(&self, code: u32) -> Value {
        match self.names.get(&code) {
            Some(name) => Value::Text(Arc::clone(name)),
            None => Value::Text(Arc::from(code.to_string())),
        }
    }
}

impl KnownReasons for DropReasons {
    fn all(&self) -> Vec<(u32, String)> {
        let names = self.names.iter();
        names
            .map(|(code, name)| (*code, name.to_string()))
            .collect()
    }

    fn of(&self) -> &'static str {
        "drop"
    }

    fn prefix(&self) -> &'static str {
        "SKB_DROP_REASON_"
    }
}
