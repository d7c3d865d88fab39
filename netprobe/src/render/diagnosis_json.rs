//! A diagnosis as one JSON object, `netprobe.diagnosis/1`; its schema is in
//! `docs/diagnosis.schema.json`.

use std::io::{self, Write};

use serde_json::{Map, Value as Json, json};

use super::{
    jsonl,
    time::{Clock, Style},
};
use crate::report::{
    Probe,
    diagnosis::{Affected, Checked, Diagnosis, Evidence, Finding, Fix},
};

/// Writes the object on one line.
pub fn write(out: &mut dyn Write, diagnosis: &Diagnosis) -> io::Result<()> {
    jsonl::line(out, &object(diagnosis))
}

/// The whole object.
fn object(diagnosis: &Diagnosis) -> Json {
    let mut clock = Clock::new(Style::Rfc3339);
    json!({
        "schema": "netprobe.diagnosis/1",
        "host": {
            "name": diagnosis.host.name,
            "kernel": diagnosis.host.kernel,
            "cpus": diagnosis.host.cpus,
            "netprobe": env!("CARGO_PKG_VERSION"),
        },
        "window": {
            "started": clock.format(diagnosis.started_unix_ns),
            "seconds": diagnosis.window.as_secs_f64(),
            "namespaces": diagnosis.namespaces,
        },
        "completeness": {
            "complete": diagnosis.is_complete(),
            "probes": diagnosis.probes.iter().map(probe).collect::<Vec<_>>(),
            "lost": lost(&diagnosis.probes),
            "gaps": diagnosis.gaps,
        },
        "cost": {
            "cpu_percent": diagnosis.cost.cpu_percent,
            "rss_kib": diagnosis.cost.rss_kib,
            "verdict_ms": diagnosis.cost.verdict.as_secs_f64() * 1000.0,
        },
        "findings": diagnosis.findings.iter().map(finding).collect::<Vec<_>>(),
        "checked": diagnosis.checked.iter().map(checked).collect::<Vec<_>>(),
    })
}

/// A probe: how it is attached, or why some of it is not.
fn probe(probe: &Probe) -> Json {
    let via = probe.hooks.iter().find_map(|hook| hook.state.as_ref().ok());
    let whys: Vec<String> = probe
        .hooks
        .iter()
        .filter_map(|hook| {
            let why = hook.state.as_ref().err()?;
            Some(format!("does not see {}: {why}", hook.sees))
        })
        .collect();
    json!({
        "name": probe.name,
        "state": probe.state(),
        "via": via,
        "why": (!whys.is_empty()).then(|| whys.join("; ")),
    })
}

/// Events that were seen, but whose detail did not arrive, by probe.
fn lost(probes: &[Probe]) -> Json {
    let lost: Map<String, Json> = probes
        .iter()
        .filter(|probe| probe.lost() > 0 || probe.missed.unwrap_or(0) > 0)
        .map(|probe| {
            let count = probe.lost() + probe.missed.unwrap_or(0);
            (probe.name.to_owned(), json!(count))
        })
        .collect();
    Json::Object(lost)
}

fn finding(finding: &Finding) -> Json {
    let mut rests_on: Vec<Json> = finding.evidence.iter().map(evidence).collect();
    if let Some(cause) = finding.behind {
        rests_on.push(json!({
            "text": format!("hidden behind {cause}"),
            "value": null,
            "unit": "",
            "source": "causality",
        }));
    }
    json!({
        "id": finding.id,
        "severity": finding.severity.name(),
        "confidence": finding.confidence.name(),
        "summary": finding.summary,
        "evidence": rests_on,
        "affected": finding.affected.iter().map(affected).collect::<Vec<_>>(),
        "fixes": finding.fixes.iter().map(fix).collect::<Vec<_>>(),
    })
}

fn evidence(evidence: &Evidence) -> Json {
    json!({
        "text": evidence.text,
        "value": evidence.value,
        "unit": evidence.unit,
        "source": evidence.source,
    })
}

fn affected(affected: &Affected) -> Json {
    json!({
        "kind": affected.kind,
        "name": affected.name,
        "netns": affected.netns,
        "pid": affected.pid,
        "comm": affected.comm,
        "address": affected.address.map(|address| address.to_string()),
        "port": affected.port,
    })
}

fn fix(fix: &Fix) -> Json {
    let set: Map<String, Json> = fix
        .set
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({ "kind": fix.kind.name(), "text": fix.text, "set": set, "risk": fix.risk })
}

fn checked(checked: &Checked) -> Json {
    json!({ "id": checked.id, "verdict": checked.verdict, "why": checked.why })
}
