//! JSON Schema of JSON Lines, from the same columns that write them.

use serde_json::{Map, Value as Json, json};

use super::connects;
use crate::report::{Column, Layout, Type};

/// The dialect that the schema is written in.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of one line of any kind of stream: an event, or the summary.
pub fn of_lines(layouts: &[Layout], totals: &[&str]) -> Json {
    let mut kinds: Map<String, Json> = layouts
        .iter()
        .map(|layout| (layout.kind.to_owned(), event(*layout)))
        .collect();
    kinds.insert("summary".to_owned(), summary(totals));
    kinds.insert("interval".to_owned(), interval(totals));
    let any: Vec<Json> = kinds
        .keys()
        .map(|kind| json!({ "$ref": format!("#/$defs/{kind}") }))
        .collect();
    json!({
        "$schema": DIALECT,
        "$id": "netprobe.lines/1",
        "title": "netprobe JSON Lines",
        "description": "One line of `netprobe STREAM --json`. Columns may be added; none is renamed or \
            changes its meaning within a version.",
        "oneOf": any,
        "$defs": kinds,
    })
}

/// The schema of one kind of event. `--columns` may leave any column out.
fn event(layout: Layout) -> Json {
    let mut properties = Map::new();
    properties.insert("kind".into(), json!({ "const": layout.kind }));
    properties.insert(
        "ts".into(),
        json!({ "type": "string", "description": "when, in the style of --timestamps (RFC 3339)" }),
    );
    properties.insert(
        "unix_ns".into(),
        json!({ "type": "integer", "description": "when, in nanoseconds since 1970-01-01T00:00:00Z" }),
    );
    for column in layout.columns {
        properties.insert(column.name.into(), property(column));
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": ["kind", "ts", "unix_ns"],
        "additionalProperties": false,
    })
}

/// Everything may be unknown, which is null.
fn property(column: &Column) -> Json {
    let mut property = match column.kind() {
        Type::Number => json!({ "type": ["integer", "null"] }),
        Type::Text => json!({ "type": ["string", "null"] }),
        Type::Stack => json!({ "type": ["array", "null"], "items": { "type": "string" } }),
    };
    property["description"] = json!(column.about);
    property
}

fn summary(totals: &[&str]) -> Json {
    let count = json!({ "type": "integer", "minimum": 0 });
    let names = [
        "fired",
        "filtered",
        "aggregated",
        "delivered",
        "sampled_out",
        "reserve_failed",
        "map_full",
        "stack_failed",
    ];
    let counters: Map<String, Json> = names
        .iter()
        .map(|name| ((*name).to_owned(), count.clone()))
        .collect();
    let probe = json!({
        "type": "object",
        "properties": {
            "name": { "enum": totals },
            "state": { "enum": ["attached", "partial", "missing"] },
            "hooks": { "type": "array", "items": { "type": "object" } },
            "counters": { "type": "object", "properties": counters, "required": names },
            "decode_errors": count,
            "filtered_user": count,
            "shown": count,
            "missed": { "type": ["integer", "null"] },
            "unexplained": { "type": "integer" },
        },
        "required": ["name", "state", "hooks", "counters", "shown", "unexplained"],
    });
    json!({
        "type": "object",
        "properties": {
            "kind": { "const": "summary" },
            "schema": { "const": "netprobe.summary/1" },
            "elapsed_s": { "type": "number" },
            "complete": { "type": "boolean", "description": "whether every hook of the probe is attached, no event was lost, skipped or left out, \
                every group that was asked for was told apart, and the kernel counted the same; stacks may be missing, see `counters`" },
            "probes": { "type": "array", "items": probe },
            "totals": { "type": "array", "items": total(totals) },
            "connects": connects(),
            "reconciled": { "type": "array", "items": reconciled(), "description": "where the kernel counts the same: without filter, or of one namespace" },
        },
        "required": ["kind", "schema", "elapsed_s", "complete", "probes", "totals"],
    })
}

/// What a run of `connects` adds up to.
fn connects() -> Json {
    let of_destination = connects::COLUMNS.iter();
    let of_destination: Map<String, Json> = of_destination
        .map(|column| (column.name.to_owned(), property(column)))
        .collect();
    json!({
        "type": "object",
        "description": "what the connects add up to (of `connects`)",
        "properties": {
            "destinations": {
                "type": "array",
                "items": { "type": "object", "properties": of_destination },
            },
        },
    })
}

/// What was seen beside what the kernel counted itself.
fn reconciled() -> Json {
    let count = json!({ "type": "integer", "minimum": 0 });
    json!({
        "type": "object",
        "properties": {
            "what": { "type": "string" },
            "seen": count,
            "counter": { "type": "string", "description": "as nstat(8) names it" },
            "least": { "type": "integer", "minimum": 0, "description": "its growth while all programs were attached" },
            "most": { "type": "integer", "minimum": 0, "description": "its growth from before the first until after the last" },
            "elsewhere": { "type": "integer", "minimum": 0, "description": "seen in namespaces whose counters could not be read, as of containers that have ended" },
            "not_compared": { "type": "integer", "minimum": 0, "description": "namespaces left out, as their settings make the kernel count something else as well (tcp_syncookies=2)" },
            "agrees": { "type": "boolean" },
        },
        "required": ["what", "seen", "counter", "least", "most", "elsewhere", "not_compared", "agrees"],
        "additionalProperties": false,
    })
}

/// What `--count --interval` shows at each interval.
fn interval(totals: &[&str]) -> Json {
    json!({
        "type": "object",
        "properties": {
            "kind": { "const": "interval" },
            "ts": { "type": "string", "description": "the end of the interval" },
            "unix_ns": { "type": "integer", "description": "the same in nanoseconds" },
            "elapsed_s": { "type": "number", "description": "how long it was; the last one ends with the run" },
            "totals": { "type": "array", "items": total(totals), "description": "what was added" },
        },
        "required": ["kind", "ts", "unix_ns", "elapsed_s", "totals"],
        "additionalProperties": false,
    })
}

fn total(totals: &[&str]) -> Json {
    let count = json!({ "type": "integer", "minimum": 0 });
    json!({
        "type": "object",
        "properties": {
            "kind": { "enum": totals },
            "group": { "type": "object" },
            "events": count,
            "weight": count,
        },
        "required": ["kind", "group", "events", "weight"],
        "additionalProperties": false,
    })
}
