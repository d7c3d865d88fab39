//! What a run of `connects` adds up to, for eyes and as JSON.

use std::io::{self, Write};

use serde_json::{Value as Json, json};

use super::{duration, text::UNKNOWN};
use crate::report::{Column, ConnectView, Destination};

/// What is told of each destination, beside its address and port.
pub const COLUMNS: &[Column] = &[
    Column::number("connects", "CONNECTS", 8, "connects that ended"),
    Column::number("failed", "FAILED", 8, "those that were not established"),
    Column::number(
        "unanswered",
        "UNANSWERED",
        10,
        "failed ones whose SYNs nobody answered until the kernel (ETIMEDOUT) or the application gave up",
    ),
    Column::number("syns_again", "SYNS-AGAIN", 10, "SYNs that were sent again"),
    Column::number(
        "worst_ns",
        "WORST",
        8,
        "longest time from the call to the outcome",
    ),
    Column::number(
        "netns",
        "NETNS",
        10,
        "network namespace (inode number), if there are several",
    ),
];

/// Widest bar of the histogram.
const WIDTH: u64 = 40;

/// Writes it as text.
pub fn write(out: &mut dyn Write, view: &ConnectView) -> io::Result<()> {
    let failed = failed(view);
    let of_what = if view.are_all { "" } else { ", of those shown" };
    writeln!(
        out,
        "connects: {} established, {failed} not{of_what}",
        view.established
    )?;
    for (errno, count) in &view.failed {
        let about = match errno.as_str() {
            "ETIMEDOUT" => "  (the kernel gave up: nobody answered)",
            "closed" => "  (the application gave up before an answer came)",
            _ => "",
        };
        writeln!(out, "  {count:>8}  {errno}{about}")?;
    }
    let all = view.established + failed;
    if view.shown < all {
        writeln!(out, "of the {} that were shown, of {all}:", view.shown)?;
    }
    histogram(out, view)?;
    let again = view.attempts.iter().filter(|(syns, _)| *syns > 1);
    let again: Vec<String> = again
        .map(|(syns, count)| format!("{count} with {syns} SYNs"))
        .collect();
    if !again.is_empty() {
        writeln!(
            out,
            "connects that sent their SYN again: {}",
            again.join(", ")
        )?;
    }
    if !view.steps.is_empty() {
        let steps = view
            .steps
            .iter()
            .map(|(step, count)| format!("{step} s: {count}"));
        let steps = steps.collect::<Vec<_>>().join(", ");
        writeln!(
            out,
            "established only after a lost SYN was sent again, after {steps}"
        )?;
    }
    destinations(out, view)
}

fn failed(view: &ConnectView) -> u64 {
    view.failed.iter().map(|(_, count)| count).sum()
}

/// Below each power of two of microseconds.
fn histogram(out: &mut dyn Write, view: &ConnectView) -> io::Result<()> {
    let Some(((first, _), (last, _))) = view.latency.first().zip(view.latency.last()) else {
        return Ok(());
    };
    let most = view
        .latency
        .iter()
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(1);
    writeln!(out, "{:>12} {:>8}", "LATENCY", "CONNECTS")?;
    for magnitude in *first..=*last {
        let found = view.latency.iter().find(|(known, _)| *known == magnitude);
        let count = found.map_or(0, |(_, count)| *count);
        let bar = "#".repeat(usize::try_from(WIDTH * count / most).unwrap_or(0));
        let line = format!("{:>12} {count:>8} {bar}", format!("< {}", below(magnitude)));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Rounded up: what took longer than that is not in the line.
fn below(magnitude: u32) -> String {
    let us = 1_u64.checked_shl(magnitude).unwrap_or(u64::MAX);
    let hundredths = |unit: u64| {
        let rounded = us.div_ceil(unit / 100);
        format!("{}.{:02}", rounded / 100, rounded % 100)
    };
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{} ms", hundredths(1_000)),
        _ => format!("{} s", hundredths(1_000_000)),
    }
}

fn destinations(out: &mut dyn Write, view: &ConnectView) -> io::Result<()> {
    if view.destinations.is_empty() {
        return Ok(());
    }
    let netns = if view.has_many_netns {
        format!(" {:>10}", "NETNS")
    } else {
        String::new()
    };
    writeln!(
        out,
        "{:>8} {:>8} {:>10} {:>10} {:>8}{netns}  DESTINATION",
        "CONNECTS", "FAILED", "UNANSWERED", "SYNS-AGAIN", "WORST"
    )?;
    for destination in &view.destinations {
        line(out, destination, view.has_many_netns)?;
    }
    if view.other.connects > 0 {
        line(out, &view.other, view.has_many_netns)?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, destination: &Destination, has_netns: bool) -> io::Result<()> {
    let mut worst = String::new();
    match destination.worst_ns {
        Some(ns) => duration::push(&mut worst, ns),
        None => worst.push_str(UNKNOWN),
    }
    write!(
        out,
        "{:>8} {:>8} {:>10} {:>10} {worst:>8}",
        destination.connects, destination.failed, destination.unanswered, destination.sent_again,
    )?;
    if has_netns {
        let netns = destination.netns.map(|netns| netns.to_string());
        write!(out, " {:>10}", netns.as_deref().unwrap_or("-"))?;
    }
    match destination.end {
        Some((address, port)) => writeln!(out, "  {address} port {port}"),
        None => writeln!(out, "  other"),
    }
}

/// The same as JSON, for the summary line.
pub fn json(view: &ConnectView) -> Json {
    let pairs = |pairs: &[(u64, u64)], key: &str| -> Vec<Json> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, count)| json!({ key: name, "connects": count }))
            .collect()
    };
    let destination = |destination: &Destination| {
        json!({
            "netns": destination.netns,
            "daddr": destination.end.map(|(address, _)| address.to_string()),
            "dport": destination.end.map(|(_, port)| port),
            "connects": destination.connects,
            "failed": destination.failed,
            "unanswered": destination.unanswered,
            "syns_again": destination.sent_again,
            "worst_ns": destination.worst_ns,
        })
    };
    let latency: Vec<(u64, u64)> = (view.latency.iter())
        .map(|(magnitude, count)| (1_u64.checked_shl(*magnitude).unwrap_or(u64::MAX), *count))
        .collect();
    json!({
        "counted": if view.are_all { "all" } else { "shown" },
        "established": view.established,
        "failed": view.failed.iter()
            .map(|(errno, count)| json!({ "errno": errno, "connects": count }))
            .collect::<Vec<_>>(),
        "shown": view.shown,
        "latency": pairs(&latency, "below_us"),
        "syn_attempts": pairs(&view.attempts, "syns"),
        "lost_syn_steps": pairs(&view.steps, "after_s"),
        "destinations": view.destinations.iter().map(destination).collect::<Vec<_>>(),
        "other": destination(&view.other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(attempts: &[(u64, u64)]) -> String {
        let view = ConnectView {
            attempts: attempts.to_vec(),
            are_all: true,
            ..ConnectView::default()
        };
        let mut out = Vec::new();
        write(&mut out, &view).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_only_of_those_shown_is_said_to_be() {
        let mut view = ConnectView {
            established: 3,
            failed: vec![("ECONNREFUSED".to_owned(), 97)],
            are_all: true,
            shown: 20,
            ..ConnectView::default()
        };
        let first = |view: &ConnectView| {
            let mut out = Vec::new();
            write(&mut out, view).unwrap();
            let out = String::from_utf8(out).unwrap();
            out.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let lines = first(&view);
        assert_eq!(lines[0], "connects: 3 established, 97 not");
        assert_eq!(lines[2], "of the 20 that were shown, of 100:");
        view.shown = 100;
        assert_eq!(first(&view).len(), 2);
        view.are_all = false;
        assert_eq!(
            first(&view)[0],
            "connects: 3 established, 97 not, of those shown"
        );
    }

    #[test]
    fn a_time_is_below_the_limit_that_its_line_names() {
        let limits = [9, 10, 19, 20, 21, 23].map(below);
        assert_eq!(
            limits,
            [
                "512 us",
                "1.03 ms",
                "524.29 ms",
                "1.05 s",
                "2.10 s",
                "8.39 s"
            ]
        );
    }

    #[test]
    fn the_worst_of_unknown_times_is_unknown() {
        let mut view = ConnectView {
            destinations: vec![Destination::default()],
            ..ConnectView::default()
        };
        let shown = |view: &ConnectView| {
            let mut out = Vec::new();
            destinations(&mut out, view).unwrap();
            let out = String::from_utf8(out).unwrap();
            let line = out.lines().nth(1).unwrap();
            line.split_whitespace().nth(4).unwrap().to_owned()
        };
        assert_eq!(shown(&view), "-");
        assert_eq!(json(&view)["destinations"][0]["worst_ns"], Json::Null);
        view.destinations[0].worst_ns = Some(1_500_000_000);
        assert_eq!(shown(&view), "1.50s");
        assert_eq!(
            json(&view)["destinations"][0]["worst_ns"],
            1_500_000_000_u64
        );
    }

    #[test]
    fn columns_are_those_of_the_table_and_of_json() {
        let view = ConnectView {
            destinations: vec![Destination::default()],
            has_many_netns: true,
            ..ConnectView::default()
        };
        let mut out = Vec::new();
        destinations(&mut out, &view).unwrap();
        let table = String::from_utf8(out).unwrap();
        let titles: Vec<_> = COLUMNS.iter().map(|column| column.title).collect();
        let heading = table.lines().next().unwrap().split_whitespace();
        assert_eq!(
            heading.collect::<Vec<_>>(),
            [&titles[..], &["DESTINATION"]].concat()
        );
        let json = json(&view);
        let json = json["destinations"][0].as_object().unwrap();
        let mut names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        names.extend(["daddr", "dport"]);
        names.sort_unstable();
        assert_eq!(json.keys().collect::<Vec<_>>(), names);
    }

    #[test]
    fn destinations_tell_their_namespace_where_there_are_several() {
        let end = Some(("127.0.0.1".parse().unwrap(), 7070));
        let of = |netns, failed| Destination {
            netns: Some(netns),
            end,
            connects: 10,
            failed,
            ..Destination::default()
        };
        let mut view = ConnectView {
            destinations: vec![of(4_026_531_840, 10), of(4_026_532_000, 0)],
            has_many_netns: true,
            ..ConnectView::default()
        };
        view.other.connects = 1;
        let lines = |view: &ConnectView| {
            let mut out = Vec::new();
            destinations(&mut out, view).unwrap();
            let out = String::from_utf8(out).unwrap();
            out.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let several = lines(&view);
        assert!(
            several[0].ends_with("      NETNS  DESTINATION"),
            "{several:?}"
        );
        assert!(
            several[1].ends_with(" 4026531840  127.0.0.1 port 7070"),
            "{several:?}"
        );
        assert!(
            several[2].ends_with(" 4026532000  127.0.0.1 port 7070"),
            "{several:?}"
        );
        assert!(several[3].ends_with("          -  other"), "{several:?}");
        let json = json(&view);
        assert_eq!(json["destinations"][0]["netns"], 4_026_531_840_u64);
        assert_eq!(json["other"]["netns"], Json::Null);
        view.has_many_netns = false;
        assert!(!lines(&view).concat().contains("40265"));
    }

    #[test]
    fn only_connects_that_sent_a_second_syn_are_said_to_have_done_so() {
        let out = shown(&[(0, 4), (1, 175), (2, 3), (4, 1)]);
        let line = out.lines().nth(1).unwrap();
        assert_eq!(
            line,
            "connects that sent their SYN again: 3 with 2 SYNs, 1 with 4 SYNs"
        );
        assert_eq!(shown(&[(0, 4), (1, 175)]).lines().count(), 1);
    }
}
