//! A diagnosis for eyes: the verdict first, then what it rests on and what to change, on one screen.

use std::io::{self, Write};

use super::{page::Page, text::harmless, time};
use crate::report::{
    Probe,
    diagnosis::{Affected, Checked, Cost, Diagnosis, Finding, Fix, Severity},
};

/// Lines are no longer than this.
const WIDTH: usize = 100;
/// Most findings that are shown at length; the others get a line each.
const AT_LENGTH: usize = 2;
/// Most of those that are hit, and of the evidence, that are shown.
const MOST: usize = 4;
/// Most lines of evidence of a finding that is not the first.
const LESS: usize = 2;

/// Writes the diagnosis, for a terminal of `width` characters if it is one.
pub fn write(out: &mut dyn Write, diagnosis: &Diagnosis, width: Option<usize>) -> io::Result<()> {
    let out = &mut Page::new(out, width, WIDTH);
    let (shown, minor): (Vec<&Finding>, Vec<&Finding>) = diagnosis
        .findings
        .iter()
        .partition(|finding| finding.severity >= Severity::Warning);
    if shown.is_empty() {
        let seconds = diagnosis.window.as_secs_f64();
        let undecided = diagnosis
            .checked
            .iter()
            .filter(|checked| is_undecided(checked));
        let count = diagnosis.checked.len() - undecided.count();
        match diagnosis.undecided(Severity::Warning) {
            Some(why) => out.wrapped("", &format!("no verdict after {seconds:.1} s: {why}")),
            None => out.wrapped(
                "",
                &format!(
                    "nothing wrong found in {seconds:.1} s ({count} kinds of incident checked)"
                ),
            ),
        }?;
    }
    let (first, behind): (Vec<&Finding>, Vec<&Finding>) = shown
        .into_iter()
        .partition(|finding| finding.behind.is_none());
    for (index, finding) in first.iter().enumerate() {
        if index < AT_LENGTH {
            at_length(out, finding, index == 0)?;
        } else {
            in_short(out, "also", finding)?;
            if finding.severity == Severity::Critical {
                best_fix(out, finding)?;
            }
        }
    }
    for finding in &behind {
        let cause = finding.behind.unwrap_or_default();
        in_short(out, &format!("behind {cause}"), finding)?;
    }
    shortened(out, first.iter().skip(AT_LENGTH).chain(&behind))?;
    for finding in minor {
        in_short(out, "note", finding)?;
    }
    footer(out, diagnosis)
}

fn at_length(out: &mut Page<'_>, finding: &Finding, is_first: bool) -> io::Result<()> {
    let severity = finding.severity.name().to_uppercase();
    let confidence = finding.confidence.name();
    let heading = format!("{severity} {} ({confidence} confidence)", finding.id);
    out.wrapped("", &heading)?;
    out.wrapped("  ", &finding.summary)?;
    let (most_evidence, most_hit) = if is_first {
        (MOST + 2, MOST)
    } else {
        (LESS, 1)
    };
    for evidence in finding.evidence.iter().take(most_evidence) {
        out.wrapped("  - ", &format!("{} [{}]", evidence.text, evidence.source))?;
    }
    for affected in finding.affected.iter().take(most_hit) {
        out.wrapped("  hit: ", &hit(affected))?;
    }
    if finding.affected.len() > most_hit {
        let more = finding.affected.len() - most_hit;
        writeln!(out, "  hit: and {more} more")?;
    }
    let evidence = finding.evidence.len().saturating_sub(most_evidence);
    if is_first {
        for (index, fix) in finding.fixes.iter().enumerate() {
            self::fix(out, index + 1, fix)?;
        }
        cut(out, evidence, 0)?;
    } else {
        best_fix(out, finding)?;
        cut(out, evidence, finding.fixes.len().saturating_sub(1))?;
    }
    writeln!(out)
}

/// Writes the one fix of a finding that has no room for more: one that helps at once, if there is one.
fn best_fix(out: &mut Page<'_>, finding: &Finding) -> io::Result<()> {
    let at_once = finding.fixes.iter().position(|fix| fix.is_at_once);
    let index = at_once.unwrap_or(0);
    finding
        .fixes
        .get(index)
        .map_or(Ok(()), |fix| self::fix(out, 1, fix))
}

/// Says how much of a finding is not shown, and where it is.
fn cut(out: &mut Page<'_>, evidence: usize, fixes: usize) -> io::Result<()> {
    match amount(evidence, fixes) {
        Some(amount) => out.wrapped("  ", &format!("not shown here, but with --json: {amount}")),
        None => Ok(()),
    }
}

/// Says how much of findings that got a line each is not shown.
fn shortened<'a>(
    out: &mut Page<'_>,
    findings: impl Iterator<Item = &'a &'a Finding>,
) -> io::Result<()> {
    let (mut evidence, mut fixes) = (0, 0);
    for finding in findings {
        let is_shown = finding.behind.is_none() && finding.severity == Severity::Critical;
        evidence += finding.evidence.len();
        fixes += finding.fixes.len().saturating_sub(is_shown.into());
    }
    match amount(evidence, fixes) {
        Some(amount) => out.wrapped(
            "",
            &format!("of these, not shown here, but with --json: {amount}"),
        ),
        None => Ok(()),
    }
}

/// So much evidence, and so many fixes, in words.
fn amount(evidence: usize, fixes: usize) -> Option<String> {
    let counted = |count: usize, one: &str, several: &str| match count {
        0 => None,
        1 => Some(format!("1 more {one}")),
        count => Some(format!("{count} more {several}")),
    };
    let parts = [
        counted(fixes, "fix", "fixes"),
        counted(evidence, "line of evidence", "lines of evidence"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn fix(out: &mut Page<'_>, number: usize, fix: &Fix) -> io::Result<()> {
    out.wrapped(&format!("  {number}. "), &fix.text)?;
    for (name, value) in &fix.set {
        let (name, value) = (harmless(name), harmless(value));
        if fix.kind.name() == "sysctl" {
            let enter = harmless(&fix.enter);
            writeln!(out, "     {enter}sysctl -w {name}='{value}'")?;
        } else {
            writeln!(out, "     {name} = {value}")?;
        }
    }
    if fix.risk != "none" {
        out.wrapped("     risk: ", fix.risk)?;
    }
    Ok(())
}

fn in_short(out: &mut Page<'_>, relation: &str, finding: &Finding) -> io::Result<()> {
    out.wrapped(
        &format!("{relation}: "),
        &format!(
            "{} {}: {}",
            finding.severity.name(),
            finding.id,
            finding.summary
        ),
    )
}

fn hit(affected: &Affected) -> String {
    let comm = affected
        .comm
        .as_ref()
        .filter(|comm| **comm != affected.name)
        .map_or(String::new(), |comm| format!(" of {comm}"));
    let pid = affected
        .pid
        .map_or(String::new(), |pid| format!(" (pid {pid})"));
    format!("{} {}{comm}{pid}", affected.kind, affected.name)
}

fn is_undecided(checked: &Checked) -> bool {
    checked.verdict == "not-enough-data"
}

/// What could not be decided, with all that have the same reason on one line.
fn undecided(out: &mut Page<'_>, diagnosis: &Diagnosis) -> io::Result<()> {
    let mut reasons = Vec::<(&str, Vec<&str>)>::new();
    for checked in diagnosis
        .checked
        .iter()
        .filter(|checked| is_undecided(checked))
    {
        match reasons.iter_mut().find(|(why, _)| *why == checked.why) {
            Some((_, ids)) => ids.push(checked.id),
            None => reasons.push((&checked.why, vec![checked.id])),
        }
    }
    for (why, ids) in reasons {
        let which = if ids.len() > MOST {
            format!("{} kinds of incident", ids.len())
        } else {
            ids.join(", ")
        };
        out.wrapped("not decided: ", &format!("{which}: {why}"))?;
    }
    Ok(())
}

fn footer(out: &mut Page<'_>, diagnosis: &Diagnosis) -> io::Result<()> {
    undecided(out, diagnosis)?;
    for gap in &diagnosis.gaps {
        out.wrapped("not seen: ", gap)?;
    }
    let blind: Vec<String> = diagnosis.probes.iter().filter_map(blind).collect();
    if !blind.is_empty() {
        out.wrapped(
            "blind: ",
            &format!("{} (netprobe check says why)", blind.join(", ")),
        )?;
    }
    let lost: u64 = diagnosis.probes.iter().map(Probe::lost).sum();
    let sampled: u64 = diagnosis
        .probes
        .iter()
        .map(|probe| probe.counters.sampled_out)
        .sum();
    let lost = match (lost, sampled) {
        (0, 0) => "nothing lost".to_owned(),
        (0, sampled) => format!("detail of {sampled} events left out to stay cheap, totals exact"),
        (lost, _) => format!("detail of {lost} events lost, totals exact"),
    };
    out.wrapped("netprobe: ",
        &format!(
            "watched {:.1} s from {} on, {} network namespace{}; {lost}; took {:.2} % of a CPU{}, with start and verdict {:.2} s of CPU \
             time, {} MiB; `netprobe explain ID` tells more",
            diagnosis.window.as_secs_f64(),
            time::of_day(diagnosis.started_unix_ns),
            diagnosis.namespaces,
            if diagnosis.namespaces == 1 { "" } else { "s" },
            diagnosis.cost.cpu_percent,
            above(&diagnosis.cost),
            diagnosis.cost.cpu_time.as_secs_f64(),
            diagnosis.cost.rss_kib / 1024
        ),
    )
}

/// What to say of a cost above its limit.
fn above(cost: &Cost) -> String {
    if cost.cpu_percent <= cost.limit_percent {
        return String::new();
    }
    format!(
        " (above the limit of {} %, see --max-overhead)",
        (cost.limit_percent * 100.0).round() / 100.0
    )
}

/// What of a probe cannot be seen here.
fn blind(probe: &Probe) -> Option<String> {
    match probe.state() {
        "attached" => None,
        state => Some(format!("{} {state}", probe.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::diagnosis::sample;

    fn text(diagnosis: &Diagnosis) -> String {
        let mut out = Vec::new();
        write(&mut out, diagnosis, None).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_wrong_is_not_said_where_nothing_could_be_seen() {
        let mut diagnosis = sample();
        diagnosis.findings.clear();
        assert!(text(&diagnosis).starts_with("nothing wrong found in 10.0 s (1 kinds"));
        diagnosis.namespaces = 0;
        let why = "no verdict after 10.0 s: no network namespace could be read\n";
        assert!(text(&diagnosis).starts_with(why));
        diagnosis.namespaces = 1;
        diagnosis.checked[0].verdict = "not-enough-data";
        let why = "no verdict after 10.0 s: no kind of incident could be ruled out\n";
        assert!(text(&diagnosis).starts_with(why));
        diagnosis.checked[0].verdict = "ok";
        diagnosis.window = std::time::Duration::from_millis(40);
        let why = "no verdict after 0.0 s: too short to say that all is well\n";
        assert!(text(&diagnosis).starts_with(why));
        // A note leaves it open; what is wrong is told.
        let mut finding = sample().findings.remove(0);
        finding.severity = Severity::Info;
        diagnosis.findings = vec![finding.clone()];
        assert!(text(&diagnosis).starts_with(why));
        finding.severity = Severity::Critical;
        finding.behind = None;
        diagnosis.findings = vec![finding];
        assert!(text(&diagnosis).starts_with("CRITICAL accept-queue-overflow"));
    }

    #[test]
    fn what_is_read_before_and_after_the_window_is_told_too() {
        let text = text(&sample())
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let told = "took 0.50 % of a CPU, with start and verdict 0.31 s of CPU time";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn a_cost_above_the_limit_is_told() {
        let mut diagnosis = sample();
        diagnosis.cost.cpu_percent = 2.43;
        let text = text(&diagnosis)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let told = "took 2.43 % of a CPU (above the limit of 2 %, see --max-overhead), with start";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn what_is_cut_is_counted_and_the_fix_that_helps_at_once_is_kept() {
        let mut diagnosis = sample();
        let mut one = diagnosis.findings.remove(0);
        one.behind = None;
        let fix = |text: &str, is_at_once| Fix {
            text: text.to_owned(),
            is_at_once,
            ..one.fixes[0].clone()
        };
        let fixes = vec![fix("rebuild", false), fix("now", true), fix("later", false)];
        let evidence = vec![one.evidence[0].clone(); 5];
        let critical = Finding {
            evidence,
            fixes,
            ..one.clone()
        };
        // The first has all.
        diagnosis.findings = vec![critical.clone()];
        let all = text(&diagnosis);
        assert!(
            all.contains("1. rebuild") && all.contains("3. later"),
            "{all}"
        );
        assert!(!all.contains("not shown"), "{all}");
        // The second has the one that helps at once, and the third, which gets a line, as well.
        let behind = Finding {
            behind: Some("x"),
            ..critical.clone()
        };
        diagnosis.findings = vec![one, critical.clone(), critical, behind];
        let all = text(&diagnosis);
        assert_eq!(all.matches("  1. now\n").count(), 2, "{all}");
        assert!(!all.contains("rebuild") && !all.contains("later"), "{all}");
        let [second, short] = [
            "  not shown here, but with --json: 2 more fixes, 3 more lines of evidence\n",
            "of these, not shown here, but with --json: 5 more fixes, 10 more lines of evidence\n",
        ];
        assert!(all.contains(second) && all.contains(short), "{all}");
    }

    #[test]
    fn what_is_undecided_for_one_reason_is_one_line() {
        let mut diagnosis = sample();
        let undecided = |id| Checked {
            id,
            verdict: "not-enough-data",
            why: "why".to_owned(),
        };
        diagnosis.checked = ["a", "b"].map(undecided).to_vec();
        assert!(text(&diagnosis).contains("not decided: a, b: why\n"));
        diagnosis.checked = vec![undecided("a"); MOST + 1];
        assert!(text(&diagnosis).contains("not decided: 5 kinds of incident: why\n"));
    }
}
