//! The values of a row in the forms that bcc prints.

use std::net::IpAddr;

use netprobe_common::header::Kind;

use crate::{
    probes,
    render::{
        text,
        time::{Clock, Style},
    },
    report::{Row, Value, name_bytes},
};

/// Reads rows of one kind by the names of their columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields(Kind);

impl Fields {
    pub(super) const fn of(kind: Kind) -> Self {
        Self(kind)
    }

    /// The value of a column; unknown if there is none.
    pub(super) fn value<'a>(self, row: &'a Row, name: &str) -> &'a Value {
        let columns = probes::of(self.0).columns;
        let place = columns.iter().position(|column| column.name == name);
        debug_assert!(place.is_some(), "{} has no {name}", self.0.name());
        place.map_or(&Value::Unknown, |place| &row.values[place])
    }

    /// A number; 0 if it is unknown, where scripts want a number.
    pub(super) fn number(self, row: &Row, name: &str) -> u64 {
        match self.value(row, name) {
            Value::Unsigned(number) => *number,
            _ => 0,
        }
    }

    /// Nanoseconds as milliseconds with so many decimals, `-` if they are unknown: no time is not unknown.
    pub(super) fn milliseconds(self, row: &Row, name: &str, decimals: usize) -> String {
        match self.value(row, name) {
            Value::Unsigned(ns) => format!("{:.decimals$}", milliseconds(*ns)),
            _ => text::UNKNOWN.to_owned(),
        }
    }

    /// Any value as text.
    pub(super) fn text(self, row: &Row, name: &str) -> String {
        let mut out = String::new();
        text::push(&mut out, self.value(row, name));
        out
    }

    /// `4` or `6`: the family of the socket.
    pub(super) fn ip(self, row: &Row) -> u8 {
        match self.value(row, "family") {
            Value::Word("ipv4") => 4,
            _ => 6,
        }
    }

    /// An address as the socket's family writes it.
    pub(super) fn address(self, row: &Row, name: &str) -> String {
        match self.value(row, name) {
            Value::Ip(IpAddr::V4(address)) if self.ip(row) == 6 => {
                address.to_ipv6_mapped().to_string()
            }
            Value::Ip(address) => address.to_string(),
            _ => "-".to_owned(),
        }
    }

    /// `ADDRESS:PORT`
    pub(super) fn end(self, row: &Row, address: &str, port: &str) -> String {
        format!("{}:{}", self.address(row, address), self.number(row, port))
    }

    /// The name of the process, cut to `width` as bcc does; nothing in it splits a line.
    pub(super) fn comm(self, row: &Row, width: usize) -> String {
        let cut = |text: &str| text.chars().take(width).collect::<String>();
        match self.value(row, "comm") {
            Value::Name(name) => {
                let name = cut(&String::from_utf8_lossy(name_bytes(name)));
                if name.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return name;
                }
                // An escape is longer than what it stands for, and is not cut within. As bcc shows them, bytes that are no
                // text are replaced.
                let parts = name.split(char::REPLACEMENT_CHARACTER).map(text::harmless);
                parts.collect::<Vec<_>>().join("\u{fffd}")
            }
            _ => cut(&self.text(row, "comm")),
        }
    }

    /// A TCP state as the kernel's header names it.
    pub(super) fn state(self, row: &Row, name: &str) -> String {
        match self.value(row, name) {
            Value::Word("ESTAB") => "ESTABLISHED".to_owned(),
            Value::Word("FIN-WAIT-1") => "FIN_WAIT1".to_owned(),
            Value::Word("FIN-WAIT-2") => "FIN_WAIT2".to_owned(),
            Value::Word("UNCONN") => "CLOSE".to_owned(),
            Value::Word(state) => state.replace('-', "_"),
            _ => "-".to_owned(),
        }
    }
}

/// Nanoseconds as milliseconds.
#[expect(
    clippy::cast_precision_loss,
    reason = "a time that needs more than 52 bits of nanoseconds is longer than a month"
)]
pub(super) fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The times that bcc prints: of day, and seconds since the first event.
#[derive(Debug)]
pub(super) struct Times {
    wall: Clock,
    first_ns: Option<u64>,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            wall: Clock::new(Style::OfDay),
            first_ns: None,
        }
    }
}

impl Times {
    /// `HH:MM:SS`
    pub(super) fn of_day(&mut self, row: &Row) -> &str {
        const SECONDS: usize = 8;
        let text = self.wall.format(row);
        text.get(..SECONDS).unwrap_or(text)
    }

    /// Seconds since the first event; one on another CPU may come before it.
    #[expect(clippy::cast_precision_loss, reason = "as in `milliseconds`")]
    pub(super) fn since_first(&mut self, row: &Row) -> f64 {
        let first = *self.first_ns.get_or_insert(row.monotonic_ns);
        let ns = row.monotonic_ns.wrapping_sub(first).cast_signed();
        ns as f64 / 1e9
    }
}

#[cfg(test)]
pub(in super::super) mod tests {
    use super::*;
    use clap::{Args, Parser};
    use std::net::Ipv4Addr;

    /// The command line of a tool.
    #[derive(Parser)]
    pub(in super::super) struct Line<T: Args> {
        #[command(flatten)]
        pub(in super::super) options: T,
    }

    /// A row of a kind in which only these columns are known.
    pub(in super::super) fn row_of(kind: Kind, known: &[(&str, Value)]) -> Row {
        let columns = probes::of(kind).columns.iter();
        let values = columns.map(|column| {
            let value = known.iter().find(|(name, _)| *name == column.name);
            value.map_or(Value::Unknown, |(_, value)| value.clone())
        });
        Row {
            values: values.collect(),
            ..Row::default()
        }
    }

    fn row(family: &'static str, comm: &[u8]) -> Row {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm);
        let columns = probes::of(Kind::States).columns;
        let values = columns.iter().map(|column| match column.name {
            "saddr" => Value::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            "family" => Value::Word(family),
            "comm" => Value::name(name),
            "state" => Value::Word("FIN-WAIT-1"),
            _ => Value::Unknown,
        });
        Row {
            values: values.collect(),
            ..Row::default()
        }
    }

    #[test]
    fn addresses_are_written_as_the_socket_family_does() {
        let fields = Fields::of(Kind::States);
        let plain = row("ipv4", b"a");
        assert_eq!(
            (fields.ip(&plain), fields.address(&plain, "saddr")),
            (4, "127.0.0.1".into())
        );
        let mapped = row("ipv4-mapped", b"a");
        assert_eq!(fields.ip(&mapped), 6);
        assert_eq!(fields.address(&mapped, "saddr"), "::ffff:127.0.0.1");
    }

    #[test]
    fn an_unknown_time_is_no_short_one() {
        let fields = Fields::of(Kind::States);
        assert_eq!(
            fields.milliseconds(&row("ipv4", b"a"), "in_state_ns", 3),
            "-"
        );
    }

    #[test]
    fn states_and_names_are_those_of_bcc() {
        let fields = Fields::of(Kind::States);
        assert_eq!(fields.state(&row("ipv4", b"a"), "state"), "FIN_WAIT1");
        assert_eq!(
            fields.comm(&row("ipv4", b"nginx-worker-17"), 10),
            "nginx-work"
        );
        assert_eq!(fields.comm(&row("ipv4", b"\x1b[2J"), 12), "\\u{1b}[2J");
        assert_eq!(
            fields.comm(&row("ipv4", b"12345678\x1b[2J"), 9),
            "12345678\\u{1b}"
        );
        assert_eq!(
            fields.comm(&row("ipv4", b"caf\xe9-latin"), 10),
            "caf\u{fffd}-latin"
        );
        assert_eq!(fields.comm(&row("ipv4", b""), 12), "-");
        assert_eq!(fields.number(&row("ipv4", b""), "pid"), 0);
    }
}
