//! The end of a run, for eyes: totals, what was seen and what was lost.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::{
    text,
    time::{Clock, Style},
};
use crate::report::{Cost, Probe, Row, Summary, Total};

/// Writes totals to `out`, which is the result of `--count`.
pub fn totals(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    for probe in &summary.probes {
        let totals = summary
            .totals
            .iter()
            .filter(|total| total.kind == probe.name);
        writeln!(
            out,
            "{:>10} {:>12}  {}",
            "EVENTS",
            probe.weight.to_uppercase(),
            probe.name
        )?;
        for total in totals {
            writeln!(
                out,
                "{:>10} {:>12}  {}",
                total.events,
                total.weight,
                group(total)
            )?;
        }
    }
    Ok(())
}

/// Writes the totals of an interval that ended at `unix_ns`.
pub fn interval(
    out: &mut dyn Write,
    unix_ns: i64,
    weight: &str,
    totals: &[Total],
) -> io::Result<()> {
    let row = Row {
        unix_ns,
        ..Row::default()
    };
    let mut clock = Clock::new(Style::OfDay);
    let weight = weight.to_uppercase();
    writeln!(out, "{:>10} {weight:>12}  {}", "EVENTS", clock.format(&row))?;
    for total in totals {
        let (events, weight) = (total.events, total.weight);
        writeln!(out, "{events:>10} {weight:>12}  {}", group(total))?;
    }
    Ok(())
}

fn group(total: &Total) -> String {
    let mut line = String::new();
    for (name, value) in &total.group {
        line.push_str(name);
        line.push('=');
        text::push(&mut line, value);
        line.push(' ');
    }
    line.truncate(line.trim_end().len());
    line
}

/// Writes the accounting of every probe, and what could not be seen.
pub fn footer(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let seconds = summary.elapsed.as_secs_f64();
    for probe in &summary.probes {
        let seen = probe.counters.fired - probe.counters.filtered;
        let events = seen.saturating_sub(probe.filtered_user);
        writeln!(
            out,
            "netprobe: {} {} events in {seconds:.1} s; {}",
            probe.name,
            events,
            account(probe)
        )?;
        for hook in &probe.hooks {
            if let Err(why) = &hook.state {
                writeln!(
                    out,
                    "netprobe: {} does not see {}: {why}",
                    probe.name, hook.sees
                )?;
            }
        }
    }
    match &summary.cost {
        Some(cost) => writeln!(out, "netprobe: {}", price(cost)),
        None => Ok(()),
    }
}

/// What netprobe itself cost, in words.
pub fn price(cost: &Cost) -> String {
    let mut line = format!("cost {:.2} % of the machine", cost.percent());
    match (cost.kernel_percent, cost.ns_per_run) {
        (Some(kernel), Some(ns)) => {
            let _infallible = write!(line, ", {kernel:.2} % in the kernel at {ns:.0} ns per run");
        }
        (Some(_), None) => {}
        (None, _) => line.push_str(", run time in the kernel unknown"),
    }
    let what = ["no stacks", "one event of 61", "no events"];
    for (what, time) in what.iter().zip(cost.reduced) {
        if !time.is_zero() {
            let seconds = time.as_secs_f64();
            let limit = cost.limit_percent;
            let _infallible = write!(line, "; {what} for {seconds:.1} s to keep to {limit} %");
        }
    }
    line
}

fn account(probe: &Probe) -> String {
    let counters = &probe.counters;
    let mut parts = Vec::new();
    let mut part = |count: u64, what: &str| {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    };
    part(probe.shown(), "shown");
    part(probe.filtered_user, "filtered out by netprobe itself");
    part(counters.aggregated, "counted");
    part(counters.reserve_failed, "LOST (ring full)");
    part(counters.sampled_out, "not shown (budget)");
    part(counters.map_full, "without their own group (map full)");
    part(counters.stack_failed, "without stack");
    part(counters.stack_sampled_out, "without stack (sampled)");
    part(probe.decode_errors, "LOST (not decoded)");
    part(probe.missed.unwrap_or(0), "MISSED (kernel recursion guard)");
    let unexplained = counters.unexplained();
    if unexplained != 0 {
        parts.push(format!("{unexplained} UNEXPLAINED, please report"));
    }
    if parts.is_empty() {
        "nothing lost".to_owned()
    } else {
        parts.join(", ")
    }
}
