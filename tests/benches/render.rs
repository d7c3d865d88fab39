//! `cargo xtask bench render`: how many records per second one core decodes and renders, from a
//! synthetic source. The result is in `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::{io, time::Duration};

use netprobe::{
    decode::{self, Names},
    probes,
    render::{
        csv::Csv,
        format::Format,
        jsonl::Lines,
        table::{self, Table},
        time::{Clock, Style},
    },
    report::{Layout, Row, Value},
};
use netprobe_common::{
    header::{Header, Kind},
    record::{Plain, bytes_of},
    records::{Flow, Owner, drops::Drop},
};
use netprobe_tests::process::cpu_time;

/// Records that are rendered in turn.
const RECORDS: u32 = 4096;

fn main() {
    let records: Vec<Drop> = (0..RECORDS).map(record).collect();
    let spec = probes::of(Kind::Drops);
    let layout = Layout {
        kind: spec.name(),
        columns: spec.columns,
    };
    let mut row = Row::default();
    let mut names = Known {
        reason: Value::Text("NO_SOCKET".into()),
        place: Value::Text("tcp_v4_rcv+0x91".into()),
    };
    let all: Vec<usize> = (0..layout.columns.len()).collect();
    let of_day = Clock::new(Style::OfDay);
    let usual = table::fitting(layout, None, &of_day, &[]);
    let formats: [(&str, Box<dyn Format>); 3] = [
        (
            "JSON Lines",
            Box::new(Lines::new(layout, &all, Clock::new(Style::Rfc3339))),
        ),
        (
            "CSV",
            Box::new(Csv::new(layout, &all, Clock::new(Style::Rfc3339))),
        ),
        ("table", Box::new(Table::new(layout, &usual, of_day))),
    ];
    println!("| rendered as | records/s | ns each |");
    println!("| --- | ---: | ---: |");
    let mut out = io::BufWriter::with_capacity(1 << 16, io::sink());
    for (name, mut format) in formats {
        measure(name, &records, |bytes| {
            decode::decode(bytes, &mut names, &mut row).expect("a record");
            format.row(&mut out, &row).expect("a sink");
        });
    }
}

/// Renders records for a while, five times, and prints the median.
fn measure(name: &str, records: &[Drop], mut render: impl FnMut(&[u8])) {
    let mut figures: Vec<f64> = (0..5)
        .map(|_| {
            let (began, mut count) = (cpu_time(), 0_u32);
            while cpu_time().saturating_sub(began) < Duration::from_millis(500) {
                for record in records {
                    render(bytes_of(record));
                }
                count += RECORDS;
            }
            cpu_time().saturating_sub(began).as_secs_f64() * 1e9 / f64::from(count)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    println!("| {name} | {:.0} | {:.0} |", 1e9 / figures[2], figures[2]);
}

/// Names that are looked up once, as those of a live kernel.
struct Known {
    reason: Value,
    place: Value,
}

impl Names for Known {
    fn drop_reason(&mut self, _code: u32) -> Value {
        self.reason.clone()
    }

    fn symbol(&mut self, _address: u64) -> Value {
        self.place.clone()
    }

    fn owner(&mut self, owner: &Owner) -> Option<(u32, [u8; 16])> {
        Some((owner.pid, owner.comm))
    }

    fn clock_offset_ns(&self) -> i64 {
        1_700_000_000_000_000_000
    }
}

fn record(index: u32) -> Drop {
    let [_, _, high, low] = index.to_be_bytes();
    Drop {
        header: Header {
            ts_ns: 1_000_000_000_000 + u64::from(index) * 1000,
            kind: Kind::Drops as u16,
            len: u16::try_from(size_of::<Drop>()).expect("a record is short"),
            cpu: 0,
        },
        flow: Flow {
            saddr: [10, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            daddr: [10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            sport: [high, low],
            dport: 443_u16.to_be_bytes(),
            family: 2,
            protocol: 6,
            netns: 4_026_531_840,
            ifindex: 2,
        },
        owner: Owner {
            ino: 123_456,
            pid: 4321,
            is_open: 0,
            comm: *b"nginx\0\0\0\0\0\0\0\0\0\0\0",
            cgroup: 0,
        },
        location: 0xffff_ffff_8123_4567,
        reason: 3,
        len: 1500,
        seq: 987_654_321,
        stack: -1,
        tcp_flags: 0x18,
        state: 1,
        iface: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
        ..Drop::zeroed()
    }
}
