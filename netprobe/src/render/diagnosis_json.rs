//! A diagnosis as one JSON object, `netprobe.diagnosis/1`; its schema is in
//! `docs/diagnosis.schema.json`.

use std::io::{self, Write};

use serde_json::{Map, Value as Json, json};

use super::{
    jsonl,
    time::{Clock, Style},
};
use crate::report::{
    Probe, Row,
    diagnosis::{Affected, Checked, Diagnosis, Evidence, Finding, Fix},
};

/// Writes the object on one line.
pub fn write(out: &mut dyn Write, diagnosis: &Diagnosis) -> io::Result<()> {
    jsonl::line(out, &object(diagnosis))
}

/// The whole object.
fn object(diagnosis: &Diagnosis) -> Json {
    let mut clock = Clock::new(Style::Rfc3339);
    let started = Row {
        unix_ns: diagnosis.started_unix_ns,
        ..Row::default()
    };
    json!({
        "schema": "netprobe.diagnosis/1",
        "host": {
            "name": diagnosis.host.name,
            "kernel": diagnosis.host.kernel,
            "cpus": diagnosis.host.cpus,
            "netprobe": env!("CARGO_PKG_VERSION"),
        },
        "window": {
            "started": clock.format(&started),
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
            "limit_percent": diagnosis.cost.limit_percent,
            "cpu_ms": u64::try_from(diagnosis.cost.cpu_time.as_millis()).unwrap_or(u64::MAX),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::diagnosis::sample as diagnosis;

    /// The part of JSON Schema that ours uses.
    fn check(schema: &Json, value: &Json, place: &str) {
        let name = match value {
            Json::Null => "null",
            Json::Bool(_) => "boolean",
            Json::Number(number) if number.is_f64() => "number",
            Json::Number(_) => "integer",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        };
        let fits = |wanted: &Json| wanted == name || (wanted == "number" && name == "integer");
        match &schema["type"] {
            Json::Null => {}
            Json::Array(types) => assert!(types.iter().any(fits), "{place}: {value}"),
            wanted => assert!(fits(wanted), "{place}: {value}"),
        }
        if let Json::Array(words) = &schema["enum"] {
            assert!(words.contains(value), "{place}: {value}");
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap();
            assert!(value.get(name).is_some(), "{place} has no {name}");
        }
        for (name, part) in value.as_object().into_iter().flatten() {
            let known = &schema["properties"][name];
            let other = &schema["additionalProperties"];
            assert!(
                !known.is_null() || *other != false,
                "{place} may not have {name}"
            );
            check(if known.is_null() { other } else { known }, part, name);
        }
        for part in value.as_array().into_iter().flatten() {
            check(&schema["items"], part, place);
        }
    }

    #[test]
    fn the_object_is_as_its_schema_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/diagnosis.schema.json");
        let schema: Json = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        check(&schema, &object(&diagnosis()), "the object");
    }

    #[test]
    fn names_that_anybody_chose_are_harmless() {
        let mut out = Vec::new();
        write(&mut out, &diagnosis()).unwrap();
        let json = String::from_utf8(out).unwrap();
        assert_eq!(json.lines().count(), 1);
        assert!(!json.contains(['\u{1b}', '\u{202e}']), "{json}");
        let mut out = Vec::new();
        crate::render::diagnosis::write(&mut out, &diagnosis(), None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        assert!(text.starts_with("behind conntrack-table-full: "), "{text}");
    }
}
