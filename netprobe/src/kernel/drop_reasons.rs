//! Names of drop reasons. They are renumbered with every kernel, so they come from its BTF.

use std::{collections::HashMap, sync::Arc};

use super::btf::KernelBtf;
use crate::report::Value;

/// Subsystems number their own reasons, in enums of their own, some of them in modules: the name
/// of the subsystem in `enum skb_drop_reason_subsys`, its enum, and its module.
const SUBSYSTEMS: &[(&str, &str, &str)] = &[
    ("MAC80211_UNUSABLE", "mac80211_drop_reason", "mac80211"),
    ("MAC80211_MONITOR", "mac80211_drop_reason", "mac80211"),
    ("OPENVSWITCH", "ovs_drop_reason", "openvswitch"),
    ("QDISC", "qdisc_drop_reason", "vmlinux"),
];

/// Names by number.
#[derive(Debug, Default)]
pub struct DropReasons {
    names: HashMap<u32, Arc<str>>,
}

impl DropReasons {
    /// Reads the names from the kernel's BTF; none before 5.17, where drops had no reasons.
    pub fn read(btf: &KernelBtf) -> Self {
        let mut names = HashMap::new();
        for (name, value) in btf.enum_values("skb_drop_reason").unwrap_or_default() {
            let short = name
                .strip_prefix("SKB_DROP_REASON_")
                .or(name.strip_prefix("SKB_"));
            names.insert(value, Arc::from(short.unwrap_or(&name)));
        }
        for (_subsystem, reasons, module) in SUBSYSTEMS {
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
            None => Value::Unsigned(u64::from(code)),
        }
    }
}
