//! How much of the user code has no name, and why. A picture is read by the width of all its frames and by what is on top:
//! both are measured, and the larger share is told.

use std::collections::BTreeMap;

use crate::symbols::{Missing, Names};

/// Shares of a stack's weight are of so many parts of it.
const PRECISION: u64 = 1024;

/// Weights by why there is no name, and what is drawn instead.
pub(super) type Weights = BTreeMap<(Missing, String), u64>;

/// User stacks with frames, and what in them has no name.
#[derive(Debug, Default)]
pub(super) struct Nameless {
    all: u64,
    /// The weight of each stack shared among its frames.
    frames: Weights,
    /// The weight of stacks by their innermost function.
    innermost: Weights,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// All functions, each stack counting alike.
    Frames,
    /// The functions on top of the stacks.
    Innermost,
}

impl Nameless {
    /// Adds a stack. Each of its frames has the same share of it: a stack of which nothing is known has but one frame.
    pub(super) fn add(&mut self, counted: Counted, weight: u64) {
        if counted.all == 0 {
            return;
        }
        let weight = weight.saturating_mul(PRECISION);
        self.all = self.all.saturating_add(weight);
        for why in counted.nameless {
            let sum = self.frames.entry(why).or_default();
            *sum = sum.saturating_add(weight / counted.all);
        }
        if let Some(why) = counted.innermost {
            let sum = self.innermost.entry(why).or_default();
            *sum = sum.saturating_add(weight);
        }
    }

    /// What lacks more names, which they are, and the weight of all.
    pub(super) fn larger(&self) -> (Of, &Weights, u64) {
        let sum = |weights: &Weights| weights.values().sum::<u64>();
        if sum(&self.innermost) > sum(&self.frames) {
            (Of::Innermost, &self.innermost, self.all)
        } else {
            (Of::Frames, &self.frames, self.all)
        }
    }
}

/// The frames of a user stack, from the innermost.
#[derive(Debug, Default)]
pub(super) struct Counted {
    all: u64,
    /// Those without a name.
    nameless: Vec<(Missing, String)>,
    /// The first, if it has none.
    innermost: Option<(Missing, String)>,
    /// Why the last has none.
    outermost: Option<Missing>,
}

impl Counted {
    pub(super) fn add(&mut self, names: &Names) {
        let why = names
            .missing
            .map(|missing| (missing, names.frames[0].clone()));
        if self.all == 0 {
            self.innermost.clone_from(&why);
        }
        self.outermost = names.missing;
        self.all += 1;
        self.nameless.extend(why);
    }

    /// Why the outermost function has no name, if it has none.
    pub(super) const fn outermost(&self) -> Option<Missing> {
        self.outermost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack of one function that is `missing`, and so many that are not, before it or after it.
    fn counted(missing: Option<Missing>, inside: usize, outside: usize) -> Counted {
        let names = |missing| Names {
            frames: vec!["frame".to_owned()],
            missing,
            is_call: true,
        };
        let mut counted = Counted::default();
        (0..inside).for_each(|_| counted.add(&names(None)));
        counted.add(&names(missing));
        (0..outside).for_each(|_| counted.add(&names(None)));
        counted
    }

    fn larger(nameless: &Nameless) -> (Of, u64) {
        let (of, weights, all) = nameless.larger();
        (of, weights.values().sum::<u64>() * 100 / all)
    }

    #[test]
    fn a_deep_stack_weighs_no_more_than_one_of_which_nothing_is_known() {
        let mut nameless = Nameless::default();
        nameless.add(counted(None, 99, 0), 6);
        nameless.add(counted(Some(Missing::Exited), 0, 0), 4);
        assert_eq!(larger(&nameless), (Of::Frames, 40));
        nameless.add(Counted::default(), 4);
        assert_eq!(nameless.all, 10 * PRECISION);
    }

    #[test]
    fn what_is_on_top_counts_however_many_functions_are_beneath() {
        let mut nameless = Nameless::default();
        nameless.add(counted(Some(Missing::Jit), 0, 24), 9);
        nameless.add(counted(None, 0, 0), 1);
        assert_eq!(larger(&nameless), (Of::Innermost, 90));
        let mut beneath = Nameless::default();
        beneath.add(counted(Some(Missing::Stripped), 1, 0), 10);
        assert_eq!(larger(&beneath), (Of::Frames, 50));
    }
}
