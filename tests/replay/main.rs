//! Records as the kernel writes them, decoded and rendered without a kernel, compared with golden
//! files. `NETPROBE_BLESS=1` rewrites the files; read the difference before you commit it.

mod golden;
mod incident;

use std::time::Duration;

use netprobe::{
    aggregate::{stacks::Folder, summary},
    decode::{self, DecodeError},
    probes,
    render::{
        csv::Csv,
        flamegraph, folded,
        format::Format,
        jsonl::{self, Lines},
        summary as text_summary,
        table::{self, Table},
        time::{Clock, Style},
    },
    report::{Column, Cost, Flame, Layout, Palette, Profile, Row, Shown, Summary},
};
use netprobe_common::header::Kind;

use golden::matches_golden;
use incident::{Recorded, counts, probe_states, records};

/// Decodes records of `kind` and hands each row to `render`.
fn rows(kind: Kind, mut render: impl FnMut(Layout, &Row)) {
    let layout = layout(kind);
    let mut names = Recorded;
    let mut row = Row::default();
    for record in records(kind) {
        decode::decode(&record, &mut names, &mut row).expect("a record of the right size");
        render(layout, &row);
    }
}

/// All records of `kind` in a format.
fn written(kind: Kind, format: &mut dyn Format) -> Vec<u8> {
    let mut out = Vec::new();
    format.begin(&mut out).expect("write");
    rows(kind, |_, row| format.row(&mut out, row).expect("write"));
    out
}

fn layout(kind: Kind) -> Layout {
    let spec = probes::of(kind);
    Layout {
        kind: spec.name(),
        columns: spec.columns,
    }
}

#[test]
fn every_kind_as_json_lines() {
    for kind in Kind::ALL {
        let layout = layout(*kind);
        let all: Vec<usize> = (0..layout.columns.len()).collect();
        let mut lines = Lines::new(layout, &all, Clock::new(Style::Rfc3339));
        let out = written(*kind, &mut lines);
        matches_golden(&format!("{}.jsonl", kind.name()), &out);
    }
}

#[test]
fn every_kind_as_csv() {
    for kind in Kind::ALL {
        let layout = layout(*kind);
        let all: Vec<usize> = (0..layout.columns.len()).collect();
        let mut csv = Csv::new(layout, &all, Clock::new(Style::Rfc3339));
        let out = written(*kind, &mut csv);
        matches_golden(&format!("{}.csv", kind.name()), &out);
    }
}

#[test]
fn every_kind_as_table_narrow_and_wide() {
    for kind in Kind::ALL {
        for (width, suffix) in [(80, "narrow"), (250, "wide")] {
            let layout = layout(*kind);
            let clock = Clock::new(Style::Rfc3339);
            let columns = table::fitting(layout, Some(width), &clock, &[]);
            let mut table = Table::new(layout, &columns, clock).with_stacks(layout);
            let out = written(*kind, &mut table);
            matches_golden(&format!("{}.{suffix}.txt", kind.name()), &out);
        }
    }
}

#[test]
fn a_wider_terminal_shows_more_until_all_is_shown() {
    for kind in Kind::ALL {
        let layout = layout(*kind);
        let clock = Clock::new(Style::OfDay);
        let shown = |width| table::fitting(layout, Some(width), &clock, &[]).len();
        let counts: Vec<usize> = (0..400).map(shown).collect();
        assert!(counts.is_sorted(), "{}: {counts:?}", kind.name());
        assert_eq!(counts[0], table::fitting(layout, None, &clock, &[]).len());
        let hidden = |column: &&Column| column.shown == Shown::Never;
        let most = layout.columns.len() - layout.columns.iter().filter(hidden).count();
        assert_eq!(counts[399], most, "{}", kind.name());
    }
}

#[test]
fn totals_and_accounting_of_a_run_that_lost_some() {
    let summary = Summary {
        elapsed: Duration::from_millis(2500),
        probes: probe_states(),
        totals: summary::totals(counts(), &mut Recorded),
        cost: Some(Cost {
            elapsed: Duration::from_millis(2500),
            process_percent: 0.25,
            owners_percent: 0.05,
            kernel_percent: Some(0.5),
            ns_per_run: Some(58.4),
            limit_percent: 1.0,
            reduced: [0, 1500, 0, 0, 0].map(Duration::from_millis),
        }),
        connects: None,
        reconciled: Vec::new(),
    };
    let mut text = Vec::new();
    text_summary::totals(&mut text, &summary).expect("write");
    text_summary::footer(&mut text, &summary).expect("write");
    matches_golden("summary.txt", &text);
    let mut json = Vec::new();
    jsonl::summary(&mut json, &summary).expect("write");
    matches_golden("summary.json", &json);
}

#[test]
fn flame_graph_with_hostile_frames() {
    let mut folder = Folder::default();
    for (frames, weight) in incident::stacks() {
        folder.add(frames, weight);
    }
    let flame = Flame {
        title: "Packet Drop Stacks".to_owned(),
        subtitle: "host, Linux 6.12, 10.0 s".to_owned(),
        unit: "packets",
        palette: Palette::Hot,
        profile: Profile {
            name: "packets",
            unit: "count",
            elapsed: Duration::from_secs(10),
            unix_ns: 0,
            period_ns: 0,
        },
        stacks: folder.finish(),
    };
    let mut text = Vec::new();
    folded::write(&mut text, &flame).expect("write");
    matches_golden("drops.folded", &text);
    let mut svg = Vec::new();
    flamegraph::write(&mut svg, &flame, flamegraph::Style::default()).expect("draw");
    let svg = String::from_utf8(svg).expect("UTF-8");
    assert!(
        !svg.contains("<script>alert"),
        "markup in a frame name was not escaped"
    );
    assert!(
        svg.contains("&lt;script"),
        "the hostile frame is drawn, escaped"
    );
    assert!(svg.contains("tcp_v4_rcv"));
}

#[test]
fn damaged_records_are_refused_one_by_one() {
    let record = records(Kind::Drops).remove(0);
    let mut row = Row::default();
    for length in 0..record.len() {
        let refused = decode::decode(&record[..length], &mut Recorded, &mut row);
        assert!(
            matches!(refused, Err(DecodeError::Length { .. })),
            "{length} bytes"
        );
    }
    let mut unknown = record;
    unknown[8..10].copy_from_slice(&0x7777_u16.to_ne_bytes());
    let refused = decode::decode(&unknown, &mut Recorded, &mut row);
    assert_eq!(refused, Err(DecodeError::Kind(0x7777)));
}
