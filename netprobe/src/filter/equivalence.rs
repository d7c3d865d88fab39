//! The kernel's part and the rest together admit exactly what the whole filter admits on rows.
//!
//! Generated expressions meet generated records, whose fields are drawn from few values so that
//! most tests are decided either way. The kernel's part is the very function that it runs.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use netprobe_common::{
    filter::{Filter, Plainly},
    header::{Header, Kind},
    record::{Plain, bytes_of},
    records::{Flow, Owner, drops::Drop},
};

use super::{
    Expression, Predicate, Services, matcher::Matcher, parse, pushdown::split, reasons::Sample,
};
use crate::{
    decode::{Names, decode},
    observe::cgroups::Cgroup,
    probes::{drops, of},
    report::{Row, Value},
};

/// Names of [`Sample`], and owners as they are sent.
struct Known;

impl Names for Known {
    fn drop_reason(&mut self, code: u32) -> Value {
        let known = super::KnownReasons::all(&Sample);
        match known.into_iter().find(|(known, _)| *known == code) {
            Some((_, name)) => Value::Text(Arc::from(name)),
            None => Value::Unsigned(u64::from(code)),
        }
    }
}

struct Table;

impl Services for Table {
    fn hosts(&self, _name: &str) -> Vec<IpAddr> {
        Vec::new()
    }

    fn port(&self, _name: &str) -> Option<u16> {
        None
    }

    fn netns(&self, text: &str) -> Result<u32, String> {
        text.parse().map_err(|_error| "no number".into())
    }

    fn cgroup(&self, text: &str) -> Result<Cgroup, String> {
        let id = text.len() as u64;
        let path = text.strip_prefix('/').map(|_| Arc::from(text));
        path.map(|path| Cgroup { id, path })
            .ok_or_else(|| format!("no group `{text}`"))
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

const V4: [[u8; 4]; 4] = [[10, 0, 0, 1], [10, 1, 0, 1], [192, 168, 0, 1], [0; 4]];
const V6: [&str; 7] = [
    "::1",
    "::",
    "2001:db8::1",
    "2001:db8:1::1",
    "::ffff:10.0.0.1",
    "::ffff:192.168.0.1",
    "::ffff:0:0",
];
const PORTS: [u16; 8] = [0, 1, 80, 81, 443, 1023, 1024, 65535];

fn address(random: &mut Random, family: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    if family == 10 {
        bytes = random.of(&V6).parse::<Ipv6Addr>().unwrap().octets();
    } else {
        bytes[..4].copy_from_slice(&random.of(&V4));
    }
    bytes
}

fn name(text: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn record(random: &mut Random) -> Drop {
    let family = random.of(&[0, 2, 2, 10, 10]);
    Drop {
        header: Header {
            kind: Kind::Drops as u16,
            ..Header::zeroed()
        },
        flow: Flow {
            saddr: address(random, family),
            daddr: address(random, family),
            sport: random.of(&PORTS).to_be_bytes(),
            dport: random.of(&PORTS).to_be_bytes(),
            family,
            netns: random.of(&[0, 7, 8]),
            ifindex: random.of(&[0, 1, 2]),
            ..Flow::zeroed()
        },
        owner: Owner {
            pid: random.of(&[0, 5, 6]),
            comm: name(random.of(&["", "nginx", "ssh"])),
            ..Owner::zeroed()
        },
        reason: random.of(&[2, 3, 5, 6, 99]),
        state: random.of(&[0, 1, 2, 3, 6, 10, 12]),
        iface: random.of(&[
            *b"eth1\0old\0\0\0\0\0\0\0\0",
            name("eth10"),
            name("lo"),
            [0; 16],
        ]),
        ..Drop::zeroed()
    }
}

const HOSTS: &[&str] = &[
    "10.0.0.1",
    "10/8",
    "10.1/16",
    "0.0.0.0/0",
    "::1",
    "::/0",
    "2001:db8::/32",
    "*",
    "::ffff:10.0.0.1",
    "::ffff:0:0/96",
    "10.0.0.1:80",
    ":80",
    "[::1]:443",
    "inet:*",
    "inet6:*:80",
];

fn predicate(random: &mut Random) -> String {
    let equal = random.of(&["", "=", "!="]);
    match random.below(12) {
        0..=2 => {
            let side = random.of(&["src", "dst", "host"]);
            format!("{side} {equal} {}", random.of(HOSTS))
        }
        3..=5 => {
            let side = random.of(&["sport", "dport", "port"]);
            let port = random.of(&["80", "1", "443", "1024", "0-80", "81-1023"]);
            let compare = random.of(&["=", "!=", "<", "<=", ">", ">="]);
            let compare = if port.contains('-') { equal } else { compare };
            format!("{side} {compare} {port}")
        }
        6 => {
            let states = [
                "established",
                "syn-recv",
                "all",
                "connected",
                "bucket",
                "listening",
            ];
            format!(
                "{} {}",
                random.of(&["state", "exclude"]),
                random.of(&states)
            )
        }
        7 => format!(
            "dev {equal} {}",
            random.of(&["eth1", "eth10", "eth*", "lo", "1", "2"])
        ),
        8 => format!("pid {equal} {}", random.of(&["5", "6"])),
        9 => format!("comm {equal} {}", random.of(&["nginx", "s*", "x"])),
        10 => format!(
            "reason {equal} {}",
            random.of(&["NO_SOCKET", "no*", "5", "6"])
        ),
        _ => format!(
            "{} {equal} {}",
            random.of(&["netns", "family"]),
            random.of(&["4", "6"])
        ),
    }
}

fn expression(random: &mut Random, depth: usize) -> String {
    let parts: Vec<String> = (0..=random.below(4))
        .map(|_| {
            let not = random.of(&["", "", "not "]);
            if depth > 0 && random.below(4) == 0 {
                format!("{not}({})", expression(random, depth - 1))
            } else {
                not.to_owned() + &predicate(random)
            }
        })
        .collect();
    parts.join(random.of(&[" and ", " and ", " ", " or "]))
}

/// What the programs decide, by the functions that they call.
fn kernel_admits(filter: &Filter, record: &Drop) -> bool {
    filter.admits(Plainly, &record.flow)
        && filter.admits_state(Plainly, record.state)
        && filter.admits_reason(Plainly, record.reason)
        && filter.admits_interface(Plainly, &record.iface)
}

fn parsed(text: &str) -> Option<Expression> {
    let mut expression = match parse(text, &Table) {
        Ok(expression) => expression,
        // `port < 0` and the like.
        Err(error) => {
            assert!(error.message.contains("no port is like"), "{text}: {error}");
            return None;
        }
    };
    expression
        .each_mut(&mut |test| match &mut test.predicate {
            Predicate::Reason(reasons) => reasons.resolve(&Sample),
            _ => Ok(()),
        })
        .unwrap();
    Some(expression)
}

#[test]
fn both_parts_together_are_the_whole() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let records: Vec<Drop> = (0..256).map(|_| record(&mut random)).collect();
    let rows: Vec<Row> = records.iter().map(row).collect();
    let (mut admitted, mut pushed, mut whole) = (0, 0, 0);
    for _ in 0..10_000 {
        let text = expression(&mut random, 2);
        let Some(expression) = parsed(&text) else {
            continue;
        };
        let all = Matcher::new(expression.clone(), drops::SPEC.columns);
        let split = split(&expression, of(Kind::Drops).kernel_tests);
        let rest = Matcher::new(split.rest, drops::SPEC.columns);
        pushed += u32::from(split.kernel != Filter::NONE);
        whole += u32::from(rest.is_empty());
        for _ in 0..24 {
            let index = random.below(records.len());
            let expected = all.admits(&rows[index]);
            let got = kernel_admits(&split.kernel, &records[index]) && rest.admits(&rows[index]);
            assert_eq!(
                got, expected,
                "{text}\n{:?}\n{:?}",
                records[index], rows[index]
            );
            admitted += u32::from(expected);
        }
    }
    // The generator must not have missed the point.
    assert!(admitted > 20_000, "{admitted}");
    assert!(pushed > 4_000, "{pushed}");
    assert!(whole > 1_500, "{whole}");
}

fn row(record: &Drop) -> Row {
    let mut row = Row::default();
    decode(bytes_of(record), &mut Known, &mut row).unwrap();
    row
}

/// A connection of an IPv6 socket over IPv4, with everything known.
fn sample() -> Drop {
    Drop {
        header: Header {
            kind: Kind::Drops as u16,
            ..Header::zeroed()
        },
        flow: Flow {
            saddr: address_of("::ffff:10.0.0.1"),
            daddr: address_of("::ffff:10.0.0.2"),
            sport: 80_u16.to_be_bytes(),
            dport: 5000_u16.to_be_bytes(),
            family: 10,
            netns: 7,
            ifindex: 2,
            ..Flow::zeroed()
        },
        owner: Owner {
            pid: 5,
            comm: name("nginx"),
            ..Owner::zeroed()
        },
        reason: 3,
        state: 12,
        iface: name("eth1"),
        ..Drop::zeroed()
    }
}

/// One test each, against records that differ in one field.
#[test]
fn rows_are_admitted_by_what_they_show() {
    let base = sample();
    let nobody = Drop {
        owner: Owner::zeroed(),
        state: 0,
        iface: [0; 16],
        ..base
    };
    let (base, nobody) = (row(&base), row(&nobody));
    let cases = [
        ("src 10.0.0.1", true, true),
        ("src ::ffff:10.0.0.1", true, true),
        ("src ::/0", true, true),
        ("src 0.0.0.0/0 and family inet6", true, true),
        ("family inet", false, false),
        ("host 10.0.0.2:5000", true, true),
        ("host 10.0.0.2:80", false, false),
        ("sport 80 dport 5000", true, true),
        ("port 5000", true, true),
        ("port != 5000", false, false),
        ("state syn-recv", true, false),
        ("exclude syn-recv", false, true),
        ("not state syn-recv", false, true),
        ("pid 5", true, false),
        ("pid != 5", false, true),
        ("not pid 6", true, true),
        ("comm ng*", true, false),
        ("dev eth1", true, false),
        ("dev 2", true, true),
        ("reason no-socket", true, true),
        ("netns 7", true, true),
        ("netns 8", false, false),
    ];
    for (text, of_base, of_nobody) in cases {
        let matcher = Matcher::new(parsed(text).unwrap(), drops::SPEC.columns);
        assert_eq!(matcher.admits(&base), of_base, "{text}");
        assert_eq!(matcher.admits(&nobody), of_nobody, "{text}");
    }
}

fn address_of(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}
