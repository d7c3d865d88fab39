//! The end of a run, for eyes: totals, what was seen and what was lost.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::Duration,
};

use super::{
    duration, text,
    time::{Clock, Style},
};
use crate::report::{Cost, Interval, Probe, Reconciled, Row, Setting, Summary, Total, Value};

/// Writes totals to `out`, which is the result of `--count`.
pub fn totals(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    for probe in &summary.probes {
        let mut totals = summary
            .totals
            .iter()
            .filter(|total| total.kind == probe.name);
        lines(out, probe.weight, probe.name, &mut totals)?;
    }
    Ok(())
}

/// Writes the totals of an interval.
pub fn interval(out: &mut dyn Write, weight: &str, interval: &Interval<'_>) -> io::Result<()> {
    let row = Row {
        unix_ns: interval.unix_ns,
        ..Row::default()
    };
    let mut clock = Clock::new(Style::OfDay);
    let seconds = interval.elapsed.as_secs_f64();
    let title = format!("{}, {seconds:.1} s", clock.format(&row));
    lines(out, weight, &title, &mut interval.totals.iter())
}

fn lines(
    out: &mut dyn Write,
    weight: &str,
    title: &str,
    totals: &mut dyn Iterator<Item = &Total>,
) -> io::Result<()> {
    let is_time = duration::unit_ns(weight.trim_end_matches(')')).is_some();
    let heading = heading(weight);
    let width = heading.len().max(12);
    writeln!(out, "{:>10} {heading:>width$}  {title}", "EVENTS")?;
    let mut cell = String::new();
    for total in totals {
        cell.clear();
        if is_time {
            duration::push(&mut cell, total.weight);
        } else {
            text::push(&mut cell, &Value::Unsigned(total.weight));
        }
        let events = total.events;
        writeln!(out, "{events:>10} {cell:>width$}  {}", group(total))?;
    }
    Ok(())
}

/// What stands above the weights of totals: a time has its unit beside each.
pub fn heading(weight: &str) -> String {
    weight.replace("_ns)", ")").to_uppercase()
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
    for reconciled in &summary.reconciled {
        writeln!(out, "netprobe: {}", beside(reconciled))?;
    }
    match &summary.cost {
        Some(cost) => writeln!(out, "netprobe: {}", price(cost)),
        None => Ok(()),
    }
}

/// What was seen beside what the kernel counted.
fn beside(reconciled: &Reconciled) -> String {
    let Reconciled {
        least, most, seen, ..
    } = *reconciled;
    let counted = if least == most {
        least.to_string()
    } else {
        // Some came while the programs were attached or taken out.
        format!("{least} to {most}")
    };
    let verdict = if seen < least {
        format!(": {} NOT SEEN", least - seen)
    } else if seen > most {
        format!(": {} too many, UNEXPLAINED, please report", seen - most)
    } else {
        String::new()
    };
    let elsewhere = match reconciled.elsewhere {
        0 => String::new(),
        seen => format!("; {seen} in namespaces whose counters could not be read"),
    };
    let left_out = match &reconciled.not_where {
        Some(Setting { name, value, about }) if reconciled.not_compared > 0 => format!(
            "; not compared in {} with {name}={value}, where it counts {about}",
            namespaces(reconciled.not_compared)
        ),
        _ => String::new(),
    };
    format!(
        "{seen} of {counted} {} seen ({}){verdict}{elsewhere}{left_out}",
        reconciled.unit, reconciled.counter
    )
}

fn namespaces(count: u64) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} network namespace{plural}")
}

/// What of each probe was lost, in words: also who wants to hear nothing else must know. Of what could not be written
/// the error tells.
pub fn losses(summary: &Summary) -> impl Iterator<Item = String> {
    let lossy = |probe: &&Probe| {
        let not_shown = probe.not_shown() - probe.unwritten;
        not_shown > 0 || probe.counters.unexplained() != 0
    };
    let probes = summary.probes.iter().filter(lossy);
    probes.map(|probe| format!("{}: {}", probe.name, account(probe)))
}

/// Of a shorter run, most of what it cost is to begin and to end: no share of the machine tells anything.
const LEAST: Duration = Duration::from_secs(1);

/// What netprobe itself cost, in words.
pub fn price(cost: &Cost) -> String {
    let mut line = format!("cost {:.2} % of the machine", cost.percent());
    let is_short = cost.elapsed < LEAST;
    if is_short {
        let _infallible = write!(line, " for {} ms", cost.elapsed.as_millis());
    }
    match (cost.kernel_percent, cost.ns_per_run) {
        (Some(kernel), Some(ns)) => {
            let _infallible = write!(line, ", {kernel:.2} % in the kernel at {ns:.0} ns per run");
        }
        (Some(_), None) => {}
        (None, _) => line.push_str(", run time in the kernel unknown"),
    }
    if cost.owners_percent * 10.0 >= cost.limit_percent {
        let _infallible = write!(
            line,
            ", {:.2} % to find owners of sockets",
            cost.owners_percent
        );
    }
    if cost.percent() > cost.limit_percent && !is_short {
        let _infallible = write!(line, ", above the limit of {} %", cost.limit_percent);
    }
    let what = [
        "few or no stacks",
        "one event of 61",
        "no events",
        "flows and owners not told apart",
        "owners of sockets looked for less often",
    ];
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
    part(probe.unwritten, "LOST (not written)");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lacking;

    #[test]
    fn a_total_that_the_kernel_does_not_share_is_said() {
        let told = |seen, least, most| {
            beside(&Reconciled {
                unit: "segments",
                counter: "Tcp.RetransSegs".to_owned(),
                seen,
                least,
                most,
                elsewhere: 0,
                not_compared: 0,
                not_where: None,
            })
        };
        assert_eq!(told(7, 7, 7), "7 of 7 segments seen (Tcp.RetransSegs)");
        assert_eq!(told(8, 7, 9), "8 of 7 to 9 segments seen (Tcp.RetransSegs)");
        assert_eq!(
            told(6, 7, 9),
            "6 of 7 to 9 segments seen (Tcp.RetransSegs): 1 NOT SEEN"
        );
        let more = told(11, 7, 9);
        assert!(more.contains(": 2 too many, UNEXPLAINED"), "{more}");
    }

    #[test]
    fn namespaces_whose_counter_counts_something_else_are_said() {
        let told = beside(&Reconciled {
            unit: "SYNs answered with a cookie",
            counter: "TcpExt.TCPReqQFullDoCookies".to_owned(),
            seen: 2,
            least: 2,
            most: 2,
            elsewhere: 0,
            not_compared: 1,
            not_where: Some(Setting {
                name: "net.ipv4.tcp_syncookies",
                value: "2",
                about: "every SYN",
            }),
        });
        assert_eq!(
            told,
            "2 of 2 SYNs answered with a cookie seen (TcpExt.TCPReqQFullDoCookies); not compared in 1 network namespace \
             with net.ipv4.tcp_syncookies=2, where it counts every SYN"
        );
    }

    #[test]
    fn whoever_wants_to_hear_only_of_losses_hears_of_what_is_left_out() {
        assert_eq!(losses(&lacking(0)).count(), 0);
        let told: Vec<String> = losses(&lacking(7)).collect();
        assert_eq!(told, ["drops: 1 shown, 7 not shown (budget)"]);
    }

    #[test]
    fn a_cost_above_the_limit_is_said() {
        let mut cost = Cost {
            elapsed: Duration::from_secs(5),
            process_percent: 4.0,
            owners_percent: 0.04,
            kernel_percent: Some(0.03),
            ns_per_run: None,
            limit_percent: 0.5,
            reduced: [Duration::ZERO; 5],
        };
        let told = price(&cost);
        assert!(told.ends_with(", above the limit of 0.5 %"), "{told}");
        cost.limit_percent = 5.0;
        assert_eq!(price(&cost), "cost 4.03 % of the machine");
        cost.limit_percent = 0.5;
        cost.elapsed = Duration::from_millis(20);
        assert_eq!(price(&cost), "cost 4.03 % of the machine for 20 ms");
        cost.kernel_percent = None;
        assert!(price(&cost).ends_with(" ms, run time in the kernel unknown"));
    }

    #[test]
    fn what_it_costs_to_find_owners_is_said_where_it_is_much() {
        let mut cost = Cost {
            elapsed: Duration::from_secs(20),
            process_percent: 1.3,
            owners_percent: 1.1,
            kernel_percent: Some(0.0),
            limit_percent: 1.0,
            ..Cost::default()
        };
        cost.reduced[4] = Duration::from_secs(12);
        assert_eq!(
            price(&cost),
            "cost 1.30 % of the machine, 1.10 % to find owners of sockets, above the limit of 1 %; \
             owners of sockets looked for less often for 12.0 s to keep to 1 %"
        );
    }

    #[test]
    fn a_sum_is_called_a_sum_and_an_interval_says_how_long_it_was() {
        let totals = [Total {
            kind: "connects",
            group: vec![("dport", Value::Unsigned(443))],
            events: 2,
            weight: 3_000_000,
        }];
        let last = Interval {
            unix_ns: 0,
            elapsed: Duration::from_millis(400),
            totals: &totals,
        };
        let mut out = Vec::new();
        interval(&mut out, "sum(latency_ns)", &last).unwrap();
        let out = String::from_utf8(out).unwrap();
        let [heading, line] = out.lines().collect::<Vec<_>>()[..] else {
            panic!("{out}");
        };
        assert!(heading.starts_with("    EVENTS SUM(LATENCY)  "), "{out}");
        assert!(heading.ends_with(", 0.4 s"), "{out}");
        assert_eq!(line, "         2       3.00ms  dport=443");
    }
}
