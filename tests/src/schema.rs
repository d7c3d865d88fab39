//! `netprobe schema`, and whether a line of JSON obeys it.
//!
//! Knows the keywords that the schema uses and panics at any other, so that none goes unchecked.

use std::{process::Command, sync::OnceLock};

use serde_json::Value;

use crate::program::binary;

/// What `netprobe schema` says, asked once.
pub fn schema() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let output = Command::new(binary())
            .arg("schema")
            .output()
            .expect("run netprobe schema");
        assert!(output.status.success(), "netprobe schema failed");
        serde_json::from_slice(&output.stdout).expect("the schema is JSON")
    })
}

/// Panics unless a line is what the schema says of its kind.
#[track_caller]
pub fn assert_valid(line: &Value) {
    let kind = line["kind"].as_str().expect("a line has a kind");
    let schema = &schema()["$defs"][kind];
    assert!(schema.is_object(), "the schema does not know {kind}");
    if let Err(why) = check(schema, line) {
        panic!("{kind}: {why}: {line}");
    }
}

/// Why `value` does not obey `schema`.
pub fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let keywords = schema.as_object().ok_or("a schema is an object")?;
    for (keyword, wanted) in keywords {
        match keyword.as_str() {
            "description" => {}
            "const" => must(wanted == value, || format!("{value} is not {wanted}"))?,
            "enum" => {
                let is_one = wanted.as_array().is_some_and(|all| all.contains(value));
                must(is_one, || format!("{value} is none of {wanted}"))?;
            }
            "type" => must(is_of(wanted, value), || format!("{value} is not {wanted}"))?,
            "minimum" => {
                let is_more = value.as_f64() >= wanted.as_f64();
                must(is_more, || format!("{value} is below {wanted}"))?;
            }
            "required" => {
                let names = wanted.as_array().into_iter().flatten();
                for name in names.filter_map(Value::as_str) {
                    must(value.get(name).is_some(), || format!("no {name}"))?;
                }
            }
            "items" => {
                let items = value.as_array().into_iter().flatten();
                items.into_iter().try_for_each(|item| check(wanted, item))?;
            }
            "properties" | "additionalProperties" => members(schema, value)?,
            other => panic!("the schema uses {other}, which is not checked"),
        }
    }
    Ok(())
}

fn members(schema: &Value, value: &Value) -> Result<(), String> {
    let is_closed = schema["additionalProperties"] == Value::Bool(false);
    for (name, member) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(known) => check(known, member).map_err(|why| format!("{name}: {why}"))?,
            None => must(!is_closed, || format!("{name} is not in the schema"))?,
        }
    }
    Ok(())
}

fn must(is_so: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(why()) }
}

fn is_of(wanted: &Value, value: &Value) -> bool {
    if let Some(any) = wanted.as_array() {
        return any.iter().any(|one| is_of(one, value));
    }
    match wanted.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => panic!("the schema has the type {wanted}, which is not known"),
    }
}
