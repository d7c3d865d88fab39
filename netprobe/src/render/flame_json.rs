//! Stacks as JSON: a speedscope file, which also has the tree that d3-flame-graph reads, as `flame`.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
    sync::Arc,
};

use serde_json::{Value as Json, json};

use crate::report::Flame;

/// A frame of the tree.
#[derive(Debug, Default)]
struct Node {
    weight: u64,
    children: BTreeMap<Arc<str>, Self>,
}

/// Writes the stacks.
pub fn write(out: &mut dyn Write, flame: &Flame) -> io::Result<()> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut frames: Vec<Json> = Vec::new();
    let mut samples: Vec<Vec<usize>> = Vec::new();
    let mut weights: Vec<u64> = Vec::new();
    let mut root = Node::default();
    for stack in &flame.stacks {
        let sample = stack.frames.iter().map(|frame| {
            *numbers.entry(frame).or_insert_with(|| {
                frames.push(json!({ "name": &**frame }));
                frames.len() - 1
            })
        });
        samples.push(sample.collect());
        weights.push(stack.weight);
        root.add(&stack.frames, stack.weight);
    }
    let total: u64 = weights.iter().sum();
    let unit = match flame.profile.unit {
        "count" => "none",
        unit => unit,
    };
    let file = json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": concat!("netprobe ", env!("CARGO_PKG_VERSION")),
        "name": format!("{}: {}", flame.title, flame.subtitle),
        "activeProfileIndex": 0,
        "shared": { "frames": frames },
        "profiles": [{
            "type": "sampled",
            "name": flame.title,
            "unit": unit,
            "startValue": 0,
            "endValue": total,
            "samples": samples,
            "weights": weights,
        }],
        "flame": root.json("all"),
    });
    serde_json::to_writer(&mut *out, &file)?;
    writeln!(out)
}

impl Node {
    fn add(&mut self, frames: &[Arc<str>], weight: u64) {
        self.weight += weight;
        if let Some((first, rest)) = frames.split_first() {
            let child = self.children.entry(Arc::clone(first)).or_default();
            child.add(rest, weight);
        }
    }

    fn json(&self, name: &str) -> Json {
        let children: Vec<Json> = self
            .children
            .iter()
            .map(|(name, child)| child.json(name))
            .collect();
        json!({ "name": name, "value": self.weight, "children": children })
    }
}
