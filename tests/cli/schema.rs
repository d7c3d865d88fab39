//! `netprobe schema` describes what is written: every golden line of every kind, and nothing else.

use std::{fs, path::Path};

use netprobe_tests::schema::{assert_valid, check, schema};
use serde_json::{Value, json};

/// The JSON Lines that the renderer is known to write.
fn golden_lines() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("replay/golden");
    let files = fs::read_dir(folder).expect("list golden files").flatten();
    let files = files.map(|file| file.path()).filter(|path| {
        let suffix = path.extension();
        suffix.is_some_and(|suffix| suffix == "jsonl" || suffix == "json")
    });
    let text = files.map(|path| fs::read_to_string(path).expect("read a golden file"));
    text.flat_map(|text| {
        let lines = text.lines().map(serde_json::from_str::<Value>);
        lines.collect::<Result<Vec<_>, _>>().expect("JSON")
    })
    .collect()
}

#[test]
fn every_golden_line_obeys_the_schema() {
    let lines = golden_lines();
    let kinds = schema()["$defs"].as_object().expect("kinds");
    for kind in kinds
        .keys()
        .filter(|kind| *kind != "open" && *kind != "interval")
    {
        let is_there = lines.iter().any(|line| line["kind"] == **kind);
        assert!(is_there, "no golden line of {kind}");
    }
    for line in &lines {
        assert_valid(line);
    }
}

#[test]
fn what_is_not_so_is_refused() {
    let mut line = golden_lines()
        .into_iter()
        .find(|line| line["kind"] == "drops")
        .expect("a drop");
    let drops = &schema()["$defs"]["drops"];
    assert_eq!(check(drops, &line), Ok(()));
    for (name, value) in [
        ("pid", json!("4711")),
        ("comm", json!(7)),
        ("unix_ns", Value::Null),
        ("stack", json!("tcp_v4_rcv")),
        ("surprise", json!(1)),
        ("kind", json!("resets")),
    ] {
        let before = line.clone();
        line[name] = value;
        assert!(check(drops, &line).is_err(), "{name}");
        line = before;
    }
}

#[test]
fn every_column_says_what_it_is() {
    for (kind, definition) in schema()["$defs"].as_object().expect("kinds") {
        if kind == "summary" {
            continue;
        }
        let properties = definition["properties"].as_object().expect("properties");
        for (name, property) in properties.iter().filter(|(name, _)| *name != "kind") {
            let about = property["description"].as_str().unwrap_or_default();
            assert!(!about.is_empty(), "{kind}.{name}");
        }
    }
}
