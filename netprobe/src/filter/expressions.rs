//! Expressions and what they are understood as, mistakes and where they are pointed at, and input
//! that nobody would write.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{
    Expression, Predicate, Services, contradiction,
    parse::{MAX_DEPTH, MAX_LENGTH, parse},
};
use crate::observe::cgroups::Cgroup;

struct Table;

impl Services for Table {
    fn hosts(&self, name: &str) -> Vec<IpAddr> {
        if name == "localhost" {
            vec![[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()]
        } else {
            Vec::new()
        }
    }

    fn port(&self, name: &str) -> Option<u16> {
        (name == "http-alt").then_some(8080)
    }

    fn netns(&self, text: &str) -> Result<u32, String> {
        text.parse()
            .map_err(|_error| format!("no namespace `{text}`"))
    }

    fn cgroup(&self, text: &str) -> Result<Cgroup, String> {
        let id = text.len() as u64;
        let path = text.strip_prefix('/').map(|_| Arc::from(text));
        path.map(|path| Cgroup { id, path })
            .ok_or_else(|| format!("no group `{text}`"))
    }
}

/// An expression, written down as it was understood.
fn understood(expression: &Expression) -> String {
    let join = |parts: &[Expression], sign: &str| {
        let parts: Vec<String> = parts.iter().map(understood).collect();
        format!("({})", parts.join(sign))
    };
    match expression {
        Expression::And(parts) => join(parts, " & "),
        Expression::Or(parts) => join(parts, " | "),
        Expression::Test(test) => {
            let sign = if test.is_negated { "!" } else { "" };
            let what = match &test.predicate {
                Predicate::Address(side, prefixes) => {
                    let list: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
                    format!("{side:?} {}", list.join(","))
                }
                Predicate::Port(side, ports) => {
                    let ranges = ports.ranges().iter();
                    let list: Vec<String> = ranges.map(|(a, b)| format!("{a}-{b}")).collect();
                    format!("{side:?} {}", list.join(","))
                }
                Predicate::Iface(name) => format!("iface {name}"),
                Predicate::Comm(name) => format!("comm {name}"),
                Predicate::State(states) => format!("state {states:#x}"),
                Predicate::Cgroup(group) => format!("cgroup {}", group.path),
                other => format!("{other:?}"),
            };
            format!("{sign}{what}")
        }
    }
}

/// Expression, and what it means.
const RIGHT: &[(&str, &str)] = &[
    ("", "()"),
    ("src 10.0.0.1", "Source 10.0.0.1/32"),
    ("src = 10.0.0.0/8", "Source 10.0.0.0/8"),
    ("src == 10/8", "Source 10.0.0.0/8"),
    ("src eq 10.1/16:80", "(Source 10.1.0.0/16 & Source 80-80)"),
    ("dst != 10.0.0.1", "!Destination 10.0.0.1/32"),
    (
        "dst neq 10.0.0.1:80",
        "(!Destination 10.0.0.1/32 | Destination 0-79,81-65535)",
    ),
    ("dst ::1", "Destination ::1/128"),
    ("dst ::1:beef", "Destination ::1:beef/128"),
    ("dst fe80::2:1/128", "Destination fe80::2:1/128"),
    ("dst [::1:80]", "Destination ::1:80/128"),
    ("dst [::1]:80", "(Destination ::1/128 & Destination 80-80)"),
    (
        "dst [fe80::]/10:80",
        "(Destination fe80::/10 & Destination 80-80)",
    ),
    (
        "dst [fe80::/10]:80",
        "(Destination fe80::/10 & Destination 80-80)",
    ),
    (
        "dst fe80::/10:80",
        "(Destination fe80::/10 & Destination 80-80)",
    ),
    ("dst :80", "Destination 80-80"),
    ("dst *:80", "Destination 80-80"),
    ("dst *", "Any"),
    ("src any", "Any"),
    ("dst all:80", "Destination 80-80"),
    ("dst inet6:*", "Family(V6)"),
    ("dst inet6:", "Family(V6)"),
    ("src inet:", "Family(V4)"),
    ("dst localhost", "Destination 127.0.0.1/32,::1/128"),
    (
        "dst localhost:8001",
        "(Destination 127.0.0.1/32,::1/128 & Destination 8001-8001)",
    ),
    ("dst inet6:localhost", "(Destination ::1/128 & Family(V6))"),
    ("dport = :0x1f41", "Destination 8001-8001"),
    (
        "dst inet:10.0.0.1",
        "(Destination 10.0.0.1/32 & Family(V4))",
    ),
    ("dst ::ffff:10.0.0.1", "Destination ::ffff:10.0.0.1/128"),
    ("host 10.0.0.1", "Either 10.0.0.1/32"),
    ("src 10.0.0.1 or dst 10.0.0.1", "Either 10.0.0.1/32"),
    (
        "src 10/8 or src 192.168/16",
        "Source 10.0.0.0/8,192.168.0.0/16",
    ),
    (
        "host != 10.0.0.1",
        "(!Source 10.0.0.1/32 & !Destination 10.0.0.1/32)",
    ),
    ("sport 80", "Source 80-80"),
    ("sport = :80", "Source 80-80"),
    ("sport=:80", "Source 80-80"),
    ("sport>=1024", "Source 1024-65535"),
    ("sport gt :1024", "Source 1025-65535"),
    ("sport lt 1024", "Source 0-1023"),
    ("sport leq 1024", "Source 0-1024"),
    ("sport != 0", "Source 1-65535"),
    ("sport >= 0", "Any"),
    ("sport http-alt", "Source 8080-8080"),
    ("dport = :1000-2000", "Destination 1000-2000"),
    ("dport != 1000-2000", "Destination 0-999,2001-65535"),
    ("dport 80 or dport = 443", "Destination 80-80,443-443"),
    ("sport = :443 or dport = :443", "Either 443-443"),
    ("port 443", "Either 443-443"),
    (
        "port != 443",
        "(Source 0-442,444-65535 & Destination 0-442,444-65535)",
    ),
    ("port > 443", "Either 444-65535"),
    ("sport 1 dport 2", "(Source 1-1 & Destination 2-2)"),
    (
        "sport 1 && dport 2 || pid 3",
        "((Source 1-1 & Destination 2-2) | Pid(3))",
    ),
    (
        "pid 3 or sport 1 dport 2",
        "(Pid(3) | (Source 1-1 & Destination 2-2))",
    ),
    ("not pid 3 and comm x", "(!Pid(3) & comm x)"),
    ("not (pid 3 and comm x)", "(!Pid(3) | !comm x)"),
    ("! ( pid 3 | comm x )", "(!Pid(3) & !comm x)"),
    ("!!pid 3", "Pid(3)"),
    ("not not not pid 3", "!Pid(3)"),
    ("NOT PID 3 AND Comm 'my app'", "(!Pid(3) & comm my app)"),
    ("state established", "state 0x2"),
    ("state established state syn-sent", "state 0x6"),
    ("exclude listening", "state 0x1bff"),
    ("state connected exclude time-wait", "state 0x1b3e"),
    ("not state established", "state 0x1ffd"),
    ("state all", "state 0x1fff"),
    ("dev eth0", "iface eth0"),
    ("iface != 3", "!Ifindex(3)"),
    ("netns 4026531840", "Netns(4026531840)"),
    ("family ipv6", "Family(V6)"),
    (
        "family ipv4-mapped",
        "(Family(V6) & Destination ::ffff:0.0.0.0/96)",
    ),
    (
        "family != ipv4-mapped",
        "(!Family(V6) | !Destination ::ffff:0.0.0.0/96)",
    ),
    ("cgroup = /a/b", "cgroup /a/b"),
    ("not cgroup /a", "!cgroup /a"),
];

#[test]
fn expressions_are_understood() {
    for (text, expected) in RIGHT {
        match parse(text, &Table) {
            Ok(expression) => assert_eq!(understood(&expression), *expected, "{text}"),
            Err(error) => panic!("{text}: {error}"),
        }
    }
}

/// Expression, a part of the message, and the characters that are pointed at.
const WRONG: &[(&str, &str, &str)] = &[
    ("sprot = 80", "did you mean `sport`", "sprot"),
    ("sport = 70000", "the last is 65535", "70000"),
    ("sport = :70000", "the last is 65535", ":70000"),
    ("dst 10.0.0.1:70000", "the last is 65535", "70000"),
    ("dport = htpp", "neither a port nor a service", "htpp"),
    ("dport 20-10", "smaller number first", "20-10"),
    ("dport > 10-20", "only = and != compare ranges", "10-20"),
    ("dport < 0", "no port is like this", "dport < 0"),
    ("dport > 65535", "no port is like this", "dport > 65535"),
    ("src > 10.0.0.1", "only = and != compare addresses", ">"),
    ("src 10.0.0.300", "four numbers", "10.0.0.300"),
    ("src 10.0.0", "four numbers", "10.0.0"),
    ("src 10.0.0.0/33", "from 0 to 32", "33"),
    ("src ::/129", "from 0 to 128", "129"),
    ("src [::/129]", "from 0 to 128", "129"),
    ("src [::1", "bracket is not closed", "["),
    ("src [::1]x", "after the bracket", "[::1]x"),
    ("src fe80:::x", "no IPv6 address", "fe80:::x"),
    (
        "src fe80::1:80",
        "write `[fe80::1:80]` or `[fe80::1]:80`",
        "fe80::1:80",
    ),
    (
        "src fe80::1:17901",
        "write `[fe80::1]:17901`",
        "fe80::1:17901",
    ),
    ("src inet:::1", "not of the family", "inet:::1"),
    (
        "src example.com",
        "no name of a host in /etc/hosts",
        "example.com",
    ),
    ("src and pid 1", "expected an address", "and"),
    (
        "state establishd",
        "did you mean `established`",
        "establishd",
    ),
    ("family inet7", "did you mean `inet`", "inet7"),
    ("fwmark 1", "known to ss", "fwmark"),
    ("cgroup a", "no group `a`", "a"),
    ("cgroup > /a", "only = and !=", ">"),
    ("comm 'abc", "quote is not closed", "'abc"),
    ("comm and", "write 'and'", "and"),
    ("pid zero", "a process id is a number", "zero"),
    ("pid > 1", "only = and !=", ">"),
    ("netns blue", "no namespace `blue`", "blue"),
    ("(pid 1", "not closed", "("),
    ("pid 1)", "nothing is open", ")"),
    ("pid 1 or", "ends where a test", ""),
    ("pid 1 and and pid 2", "missing before this `and`", "and"),
    ("and dport 1", "missing before this `and`", "and"),
    ("pid 1 and or pid 2", "missing before this `or`", "or"),
    ("src fe80::1%vA", "write `fe80::1`", "fe80::1%vA"),
    (
        "dst 127.1",
        "is 127.1.0.0 to ss(8) and 127.0.0.1 to ping(8)",
        "127.1",
    ),
    (
        "dst 10.1.2:80",
        "is 10.1.2.0 to ss(8) and 10.1.0.2",
        "10.1.2",
    ),
    ("= 5", "expected a test", "="),
    ("dport =", "ends where a port", ""),
    ("pid 1 'x'", "expected `and`", "'x'"),
    ("dev abcdefghijklmnop", "1 to 15", "abcdefghijklmnop"),
    ("sport = 1 and sport = 2", "cannot both hold", "sport = 2"),
    (
        "sport > 10 and sport < 11",
        "cannot both hold",
        "sport < 11",
    ),
    ("src 10.0.0.1 and src ::1", "cannot both hold", "src ::1"),
    ("src 10/8 and src 11/8", "cannot both hold", "src 11/8"),
    (
        "src 10.1/16 and not src 10/8",
        "cannot both hold",
        "src 10/8",
    ),
    ("family inet and dst ::1", "cannot both hold", "dst ::1"),
    (
        "family inet and family inet6",
        "cannot both hold",
        "family inet6",
    ),
    (
        "state established and state closed",
        "cannot both hold",
        "state closed",
    ),
    (
        "state established exclude connected",
        "no state is left",
        "state established exclude connected",
    ),
    ("pid 1 and pid 2", "cannot both hold", "pid 2"),
    ("pid 1 and not pid 1", "cannot both hold", "pid 1"),
    ("comm a and comm b", "cannot both hold", "comm b"),
    (
        "sport = 1 and (sport = 2 or sport = 3 and pid 5)",
        "cannot both hold",
        "sport = 2",
    ),
    (
        "pid 1 and pid 2 or sport 1 and sport 2",
        "cannot both hold",
        "pid 2",
    ),
    ("not src *", "never holds", "src *"),
    (
        "port 80 and sport 1 and dport 2",
        "cannot hold together",
        "",
    ),
    ("sport > 10 and sport < 20 and sport != 11-19", "cannot", ""),
];

#[test]
fn mistakes_are_named_and_pointed_at() {
    for (text, message, pointed) in WRONG {
        let parsed = parse(text, &Table)
            .and_then(|expression| contradiction::check(&expression).map(|()| expression));
        let Err(error) = parsed else {
            panic!("`{text}` was taken");
        };
        assert!(error.message.contains(message), "{text}: {error}");
        let (source, at) = error.place.clone().unwrap();
        assert_eq!(&*source, *text);
        if !pointed.is_empty() {
            assert_eq!(&source[at], *pointed, "{error}");
        }
        assert_eq!(error.to_string().lines().count(), 3, "{error}");
    }
}

#[test]
fn what_can_hold_is_not_called_impossible() {
    for text in [
        "src 10/8 and src 10.1/16",
        "src 10.0.0.1 and src ::/0",
        "src 10.0.0.1 and dst ::1",
        "family inet6 and src 10.0.0.1",
        "src 10/8 and not src 10.1/16",
        "sport > 10 and sport < 20",
        "sport 1 or sport 2",
        "port 80 and port 443",
        "port 80 and sport 80",
        "comm a* and comm *b",
        "not family inet and not family inet6",
        // One of the alternatives cannot hold, another can.
        "sport = 1 and (sport = 2 or pid 5)",
        "pid 1 or sport 1 and sport 2",
        "sport = 1 and (dport = 1 or not src *)",
        "dport = 443 and not (dport = 443 and src 10/8)",
        "dst 10.1/16 and not (dst 10/8 and dport = 443)",
        "comm a and not (comm a and dst ::1) and not (comm a and dport 5)",
        "state established and not (state established and dport 443)",
        "family inet6 and not family ipv4-mapped",
        "family != ipv4-mapped and family = inet6",
    ] {
        let expression = parse(text, &Table).unwrap();
        assert_eq!(contradiction::check(&expression), Ok(()), "{text}");
    }
}

#[test]
fn endless_input_ends_in_an_error() {
    for sign in ["(", ")", "!", "not ", "(!", "dport ", "\"", "pid 1 and "] {
        assert!(parse(&sign.repeat(100_000), &Table).is_err(), "{sign}");
        assert!(
            parse(&sign.repeat(MAX_LENGTH / sign.len()), &Table).is_err(),
            "{sign}"
        );
    }
    let deep = "(".repeat(MAX_DEPTH) + "pid 1" + &")".repeat(MAX_DEPTH);
    assert!(parse(&deep, &Table).is_ok());
    let wide = "not (".repeat(MAX_DEPTH) + "pid 1" + &")".repeat(MAX_DEPTH);
    assert!(parse(&wide, &Table).is_ok());
}

const WORDS: &[&str] = &[
    "src",
    "dst",
    "sport",
    "port",
    "host",
    "state",
    "exclude",
    "(",
    ")",
    "!",
    "and",
    "or",
    "=",
    "!=",
    "<",
    ">=",
    "10.0.0.1",
    "::1",
    "[::1]",
    "[",
    "]",
    "/",
    "/8",
    ":",
    ":80",
    "80-90",
    "*",
    "'",
    "\"",
    "é",
    "\u{202e}",
    "\0",
    "0",
    "65536",
    "established",
    "inet:",
    " ",
    "10/",
    "-",
    "1-",
    ".",
    "pid",
    "comm",
    "dev",
    "999999999999999999999",
    "listener",
];

#[test]
fn random_input_never_panics() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    for round in 0..40_000 {
        let text: String = if round % 4 == 0 {
            let bytes: Vec<u8> = (0..next(40))
                .map(|_| u8::try_from(next(256)).unwrap())
                .collect();
            String::from_utf8_lossy(&bytes).into_owned()
        } else {
            let space = if next(2) == 0 { " " } else { "" };
            (0..next(12))
                .map(|_| WORDS[next(WORDS.len())].to_owned() + space)
                .collect()
        };
        match parse(&text, &Table) {
            Ok(expression) => {
                if let Err(error) = contradiction::check(&expression) {
                    assert!(!error.to_string().is_empty());
                }
                drop(expression.negate());
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
