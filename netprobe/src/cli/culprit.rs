//! `diagnose --svg`: the flame graph that shows the first finding, drawn from stacks that were
//! gathered during the window.

use std::{fs::File, io::BufWriter, path::Path, sync::Arc};

use anyhow::{Context, Result};
use netprobe_common::{
    counters::{Count, SAMPLE, StackKey},
    header::Kind,
};

use crate::{
    aggregate::stacks::Folder,
    kernel::names::LiveNames,
    probes,
    render::{flamegraph, text},
    report::{
        Flame, Folded,
        diagnosis::{Diagnosis, Finding},
    },
};

/// A sample of what the CPUs do stands for this long.
pub(super) const PERIOD_NS: u64 = 1_003_009;
/// Functions under which a local port is searched.
const PORT_SEARCH: [&str; 3] = [
    "inet_hash_connect",
    "inet6_hash_connect",
    "__inet_hash_connect",
];

/// Whose stacks show a finding.
enum Culprit {
    /// Those of a probe's events.
    Events(Kind),
    /// Those samples of the CPUs that search a port.
    PortSearch,
}

/// The stacks to draw for a finding; drops where nothing else is nearer.
fn culprit(finding: Option<&Finding>) -> Culprit {
    Culprit::Events(match finding.map_or("", |finding| finding.id) {
        "conntrack-table-full" | "conntrack-stale-entries" => Kind::Conntrack,
        "application-not-accepting"
        | "accept-queue-overflow"
        | "syn-backlog-full"
        | "half-open-established" => Kind::Listeners,
        "ephemeral-ports-exhausted" | "port-search-cost" => return Culprit::PortSearch,
        "time-wait-buildup" | "time-wait-overflow" => Kind::TimeWait,
        "syn-retransmits" | "path-loss" => Kind::Retransmits,
        "idle-reset" | "resets" | "orphan-overflow" => Kind::Resets,
        "short-lived-connections" | "long-held-connections" => Kind::Lifetimes,
        _ => Kind::Drops,
    })
}

/// Draws the graph of the first finding into the file; says if there was nothing to draw.
pub(super) fn draw(
    path: &Path,
    diagnosis: &Diagnosis,
    stacks: &[(StackKey, Count)],
    names: &mut LiveNames,
) -> Result<()> {
    let finding = diagnosis.findings.first();
    let culprit = culprit(finding);
    // Where that probe does not work, what its incident makes others see.
    let nearest = [
        culprit,
        Culprit::Events(Kind::Retransmits),
        Culprit::Events(Kind::Drops),
    ];
    let mut drawn = Vec::new();
    let mut unit = "";
    for culprit in nearest {
        drawn = fold(&culprit, stacks, names);
        unit = match culprit {
            Culprit::Events(_) => "events",
            Culprit::PortSearch => "ns",
        };
        if !drawn.is_empty() {
            break;
        }
    }
    let title = finding.map_or("nothing wrong found: dropped packets", |finding| finding.id);
    let mut subtitle = String::new();
    text::push(
        &mut subtitle,
        &crate::report::Value::Text(Arc::from(format!(
            "{}, Linux {}, {:.1} s",
            diagnosis.host.name,
            diagnosis.host.kernel,
            diagnosis.window.as_secs_f64()
        ))),
    );
    let flame = Flame {
        title: title.to_owned(),
        subtitle,
        unit,
        stacks: drawn,
    };
    if flame.stacks.is_empty() {
        log::warn!(
            "no stacks of {title} were seen: {} is not written",
            path.display()
        );
        return Ok(());
    }
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    flamegraph::write(&mut BufWriter::new(file), &flame)
        .with_context(|| format!("write {}", path.display()))
}

/// The stacks of a culprit.
fn fold(culprit: &Culprit, stacks: &[(StackKey, Count)], names: &mut LiveNames) -> Vec<Folded> {
    let mut folder = Folder::default();
    for (key, count) in stacks {
        if let Some(frames) = frames(culprit, key, names) {
            let weight = match culprit {
                Culprit::Events(_) => count.events,
                Culprit::PortSearch => count.events * PERIOD_NS,
            };
            folder.add(frames, weight);
        }
    }
    folder.finish()
}

/// Frames from the root, if the stack is one of those to draw.
fn frames(culprit: &Culprit, key: &StackKey, names: &mut LiveNames) -> Option<Vec<Arc<str>>> {
    let root = match culprit {
        Culprit::Events(kind) if key.kind == *kind as u32 => {
            (probes::of(*kind).code)(key.code, names)
        }
        Culprit::PortSearch if key.kind == SAMPLE => crate::report::Value::name(key.comm),
        Culprit::Events(_) | Culprit::PortSearch => return None,
    };
    let innermost_first = names.frames(key.stack)?;
    let searches = innermost_first
        .iter()
        .any(|frame| PORT_SEARCH.contains(&&**frame));
    if key.kind == SAMPLE && !searches {
        return None;
    }
    let mut shown = String::new();
    text::push(&mut shown, &root);
    let mut frames = vec![Arc::from(shown)];
    frames.extend(innermost_first.into_iter().rev());
    Some(frames)
}
