//! Events and the summary as JSON Lines: one object per line, every column by its name.

use std::io::{self, Write};

use serde::ser::Serialize;
use serde_json::{Map, Serializer, Value as Json, json, ser::Formatter};

use super::{
    format::Format,
    text,
    time::{Clock, Style},
};
use crate::report::{
    Cost, Interval, Layout, Probe, Reconciled, Row, Summary, Total, Value, name_bytes,
};

impl Serialize for Value {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown => serializer.serialize_none(),
            Self::Unsigned(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::Ip(address) => serializer.serialize_str(text::Short::address(*address).as_str()),
            Self::Word(word) => serializer.serialize_str(word),
            Self::Stack(frames) => serializer.collect_seq(frames.iter().map(AsRef::<str>::as_ref)),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Name(name) => {
                serializer.serialize_str(&String::from_utf8_lossy(name_bytes(name)))
            }
            Self::TcpFlags(flags) => serializer.serialize_str(text::Short::flags(*flags).as_str()),
        }
    }
}

/// Writes JSON Lines.
#[derive(Debug)]
pub struct Lines {
    /// Position of each column, and what is written before its value: always the same.
    columns: Vec<(usize, String)>,
    clock: Clock,
    line: Vec<u8>,
}

impl Lines {
    /// With these columns of a layout, by position.
    pub fn new(layout: Layout, columns: &[usize], clock: Clock) -> Self {
        // Names of columns need no escapes.
        let column = |index: &usize| (*index, format!(",\"{}\":", layout.columns[*index].name));
        Self {
            columns: columns.iter().map(column).collect(),
            clock,
            line: Vec::new(),
        }
    }
}

impl Format for Lines {
    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()> {
        // All at once: a line is written in a hundred small pieces, which are cheap only where the
        // compiler knows where they go.
        let line = &mut self.line;
        line.clear();
        line.extend_from_slice(b"{\"kind\":");
        append(line, row.kind)?;
        line.extend_from_slice(b",\"ts\":");
        append(line, self.clock.format(row).trim_start())?;
        line.extend_from_slice(b",\"unix_ns\":");
        append(line, &row.unix_ns)?;
        for (index, before) in &self.columns {
            line.extend_from_slice(before.as_bytes());
            append(line, &row.values[*index])?;
        }
        line.extend_from_slice(b"}\n");
        out.write_all(line)
    }

    fn end(&mut self, out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
        self::summary(out, summary)
    }
}

/// Writes names as they are, but no character that a terminal would act on or hide: those become
/// `\u` escapes, which every reader of JSON undoes.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for character in fragment.chars() {
            if text::is_plain(character) || character == '\\' {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// Writes one line.
pub(super) fn line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let mut bytes = Vec::new();
    append(&mut bytes, value)?;
    bytes.push(b'\n');
    out.write_all(&bytes)
}

fn append(line: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(line, Harmless))?;
    Ok(())
}

/// Writes the last line of a stream.
pub fn summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let mut object = json!({
        "kind": "summary",
        "schema": "netprobe.summary/1",
        "elapsed_s": summary.elapsed.as_secs_f64(),
        "complete": summary.is_complete(),
        "probes": summary.probes.iter().map(probe_with_counters).collect::<Vec<_>>(),
        "totals": summary.totals.iter().map(total).collect::<Vec<_>>(),
        "cost": summary.cost.as_ref().map(cost),
    });
    if !summary.reconciled.is_empty() {
        object["reconciled"] = summary.reconciled.iter().map(reconciled).collect();
    }
    if let Some(view) = &summary.connects {
        object["connects"] = super::connects::json(view);
    }
    line(out, &object)
}

/// Writes the totals of an interval.
pub fn interval(out: &mut dyn Write, interval: &Interval<'_>) -> io::Result<()> {
    let row = Row {
        unix_ns: interval.unix_ns,
        ..Row::default()
    };
    let object = json!({
        "kind": "interval",
        "ts": Clock::new(Style::Rfc3339).format(&row),
        "unix_ns": interval.unix_ns,
        "elapsed_s": interval.elapsed.as_secs_f64(),
        "totals": interval.totals.iter().map(total).collect::<Vec<_>>(),
    });
    line(out, &object)
}

fn reconciled(reconciled: &Reconciled) -> Json {
    json!({
        "what": reconciled.unit,
        "seen": reconciled.seen,
        "counter": reconciled.counter,
        "least": reconciled.least,
        "most": reconciled.most,
        "elsewhere": reconciled.elsewhere,
        "not_compared": reconciled.not_compared,
        "agrees": reconciled.agrees(),
    })
}

fn cost(cost: &Cost) -> Json {
    let [stacks, sampled, all, groups, owners] = cost.reduced.map(|time| time.as_secs_f64());
    json!({
        "machine_percent": cost.percent(),
        "process_percent": cost.process_percent,
        "owners_percent": cost.owners_percent,
        "kernel_percent": cost.kernel_percent,
        "ns_per_run": cost.ns_per_run,
        "limit_percent": cost.limit_percent,
        "without_stacks_s": stacks,
        "sampled_s": sampled,
        "without_events_s": all,
        "without_flows_s": groups,
        "owners_put_off_s": owners,
    })
}

/// What became of a probe, without its accounting.
pub fn probe(probe: &Probe) -> Json {
    let hooks: Vec<Json> = probe
        .hooks
        .iter()
        .map(|hook| {
            let (via, why) = match &hook.state {
                Ok(via) => (json!(via), Json::Null),
                Err(why) => (Json::Null, json!(why)),
            };
            json!({ "sees": hook.sees, "required": hook.required, "via": via, "why": why })
        })
        .collect();
    json!({ "name": probe.name, "state": probe.state(), "hooks": hooks })
}

fn probe_with_counters(state: &Probe) -> Json {
    let mut json = probe(state);
    let counters = &state.counters;
    json["counters"] = json!({
        "fired": counters.fired,
        "filtered": counters.filtered,
        "aggregated": counters.aggregated,
        "delivered": counters.delivered,
        "sampled_out": counters.sampled_out,
        "reserve_failed": counters.reserve_failed,
        "map_full": counters.map_full,
        "stack_failed": counters.stack_failed,
        "stack_sampled_out": counters.stack_sampled_out,
    });
    json["decode_errors"] = json!(state.decode_errors);
    json["filtered_user"] = json!(state.filtered_user);
    json["shown"] = json!(state.shown());
    json["missed"] = json!(state.missed);
    json["unexplained"] = json!(counters.unexplained());
    json
}

fn total(total: &Total) -> Json {
    let group: Map<String, Json> = total
        .group
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    json!({ "kind": total.kind, "group": group, "events": total.events, "weight": total.weight })
}
