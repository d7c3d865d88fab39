//! What the user asked to see. An unset filter is dead code to the verifier.

use netprobe_common::records::Flow;

use crate::maps::{CONFIG, frozen};

/// Whether `flow` passes every filter that is set.
#[inline(always)]
pub(crate) fn admits(flow: &Flow) -> bool {
    let family = frozen(&CONFIG.family);
    if family != 0 && u32::from(flow.family) != family {
        return false;
    }
    let netns = frozen(&CONFIG.netns);
    if netns != 0 && flow.netns != netns {
        return false;
    }
    let port = u16::from_ne_bytes(frozen(&CONFIG.port));
    port == 0 || u16::from_ne_bytes(flow.sport) == port || u16::from_ne_bytes(flow.dport) == port
}
