//! `diagnose --svg`: the flame graph that shows the first finding, drawn from the stacks of events
//! that were gathered during the window.

use std::{io::BufWriter, path::Path, sync::Arc};

use anyhow::{Context, Result};
use netprobe_common::{
    counters::{Count, StackKey},
    header::Kind,
};

use super::output;
use crate::{
    aggregate::stacks::Folder,
    kernel::names::LiveNames,
    probes,
    render::{flamegraph, text},
    report::{
        Flame, Folded, Palette, Profile,
        diagnosis::{Diagnosis, Finding},
    },
};

/// The events whose stacks show a finding; drops where nothing else is nearer.
fn culprit(finding: Option<&Finding>) -> Kind {
    match finding.map_or("", |finding| finding.id) {
        "conntrack-table-full" | "conntrack-stale-entries" => Kind::Conntrack,
        "application-not-accepting"
        | "accept-queue-overflow"
        | "syn-backlog-full"
        | "half-open-established" => Kind::Listeners,
        "ephemeral-ports-exhausted" | "port-search-cost" => Kind::Connects,
        "time-wait-buildup" | "time-wait-overflow" => Kind::TimeWait,
        "syn-retransmits" | "path-loss" => Kind::Retransmits,
        "idle-reset" | "resets" | "orphan-overflow" => Kind::Resets,
        "short-lived-connections" | "long-held-connections" => Kind::Lifetimes,
        _ => Kind::Drops,
    }
}

/// Draws the graph of the first finding into the file; says if there was nothing to draw.
pub(super) fn draw(
    path: &Path,
    diagnosis: &Diagnosis,
    stacks: &[(StackKey, Count)],
    names: &mut LiveNames,
) -> Result<()> {
    let finding = diagnosis.findings.first();
    // Where that probe does not work, what its incident makes others see.
    let nearest = [culprit(finding), Kind::Retransmits, Kind::Drops];
    let drawn = nearest
        .into_iter()
        .map(|kind| (kind, fold(kind, stacks, names)))
        .find(|(_, drawn)| !drawn.is_empty());
    let title = finding.map_or("nothing wrong found", |finding| finding.id);
    let Some((kind, stacks)) = drawn else {
        log::warn!(
            "no stacks of {title} were seen: {} is not written",
            path.display()
        );
        return Ok(());
    };
    let unit = probes::of(kind).name();
    let flame = Flame {
        title: format!("{title}: {unit}"),
        subtitle: format!(
            "{}, Linux {}, {:.1} s",
            text::harmless(&diagnosis.host.name),
            diagnosis.host.kernel,
            diagnosis.window.as_secs_f64()
        ),
        unit,
        palette: Palette::Hot,
        profile: Profile {
            name: unit,
            unit: "count",
            elapsed: diagnosis.window,
            unix_ns: diagnosis.started_unix_ns,
            period_ns: 0,
        },
        stacks,
    };
    let style = flamegraph::Style {
        is_inverted: false,
        palette: flame.palette,
    };
    let file = output::create(path)?;
    flamegraph::write(&mut BufWriter::new(file), &flame, style)
        .with_context(|| format!("write {}", path.display()))
}

/// The stacks of the events of a kind, rooted in their reason.
fn fold(kind: Kind, stacks: &[(StackKey, Count)], names: &mut LiveNames) -> Vec<Folded> {
    let mut folder = Folder::default();
    for (key, count) in stacks {
        if key.kind != kind as u32 {
            continue;
        }
        let mut root = String::new();
        text::push(&mut root, &(probes::of(kind).code)(key.code, names));
        let mut frames = vec![Arc::from(root)];
        let innermost_first = names.frames(key.stack).unwrap_or_default();
        let kernel = innermost_first.iter().rev();
        frames.extend(kernel.map(|name| Arc::from(format!("{name}_[k]"))));
        folder.add(frames, count.events);
    }
    folder.finish()
}
