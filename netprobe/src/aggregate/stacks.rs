//! Stacks that the kernel counted, named and merged: equal stacks may have several ids.

use std::{collections::BTreeMap, sync::Arc};

use crate::report::Folded;

/// Merges stacks by their frames.
#[derive(Debug, Default)]
pub struct Folder {
    stacks: BTreeMap<Vec<Arc<str>>, u64>,
}

impl Folder {
    /// Adds a stack, given from the root to the leaf.
    pub fn add(&mut self, frames: Vec<Arc<str>>, weight: u64) {
        if weight > 0 {
            *self.stacks.entry(frames).or_default() += weight;
        }
    }

    /// The merged stacks in the order of their frames.
    pub fn finish(self) -> Vec<Folded> {
        self.stacks
            .into_iter()
            .map(|(frames, weight)| Folded { frames, weight })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_stacks_are_merged_and_weightless_ones_left_out() {
        let stack = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect();
        let mut folder = Folder::default();
        folder.add(stack(&["a", "b"]), 2);
        folder.add(stack(&["a"]), 1);
        folder.add(stack(&["a", "b"]), 3);
        folder.add(stack(&["c"]), 0);
        let weights: Vec<u64> = folder.finish().iter().map(|stack| stack.weight).collect();
        assert_eq!(weights, [1, 5]);
    }
}
