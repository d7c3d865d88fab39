//! Names of reset reasons, numbered anew by each kernel, so from its BTF.

use std::{collections::HashMap, sync::Arc};

use super::btf::KernelBtf;
use crate::{filter::KnownReasons, report::Value};

const REASONS: &str = "sk_rst_reason";

/// The types that [`ResetReasons::read`] asks for.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(REASONS)
}

/// Names by number.
#[derive(Clone, Debug, Default)]
pub struct ResetReasons {
    names: HashMap<u32, Arc<str>>,
}

impl ResetReasons {
    /// Reads the names from the kernel's BTF; none before 6.10, where resets had no reasons.
    pub fn read(btf: &KernelBtf) -> Self {
        let values = btf.enum_values(REASONS).unwrap_or_default();
        let names = values.into_iter().map(|(name, value)| {
            let short = name.strip_prefix("SK_RST_REASON_").unwrap_or(&name);
            (value, Arc::from(short))
        });
        Self {
            names: names.collect(),
        }
    }

    /// The name of a reason; the number where this kernel names none.
    pub fn name(&self, code: u32) -> Value {
        match self.names.get(&code) {
            Some(name) => Value::Text(Arc::clone(name)),
            None => Value::Text(Arc::from(code.to_string())),
        }
    }
}

impl KnownReasons for ResetReasons {
    fn all(&self) -> Vec<(u32, String)> {
        let names = self.names.iter();
        names
            .map(|(code, name)| (*code, name.to_string()))
            .collect()
    }

    fn of(&self) -> &'static str {
        "reset"
    }

    fn prefix(&self) -> &'static str {
        "SK_RST_REASON_"
    }
}
