//! Stacks with weights, ready to be drawn.

use std::{sync::Arc, time::Duration};

/// A stack with its weight, ready to draw: frames from the root to the leaf.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Folded {
    /// Frames, outermost first.
    pub frames: Vec<Arc<str>>,
    /// How many units.
    pub weight: u64,
}

/// A flame graph to be drawn.
#[derive(Clone, Debug)]
pub struct Flame {
    /// Its title.
    pub title: String,
    /// Host, kernel, window, samples and what was lost.
    pub subtitle: String,
    /// What one unit of weight is.
    pub unit: &'static str,
    /// How its frames are coloured, unless somebody wants it otherwise.
    pub palette: Palette,
    /// What formats for programs say of the numbers.
    pub profile: Profile,
    /// Its stacks.
    pub stacks: Vec<Folded>,
}

/// Colours of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Palette {
    /// Red to yellow.
    #[default]
    Hot,
    /// Green.
    Mem,
    /// Blue.
    Io,
    /// By suffix: kernel orange, inlined aqua, compiled at run time green, the rest red and yellow.
    Java,
    /// Red.
    Red,
    /// Green to blue.
    Aqua,
    /// By layer of the TCP path.
    Tcp,
}

/// What the numbers of a profile are, and when they were collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What is measured.
    pub name: &'static str,
    /// Its unit, as pprof knows it.
    pub unit: &'static str,
    /// How long.
    pub elapsed: Duration,
    /// End of the window in nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// Time between samples; 0 where nothing is sampled.
    pub period_ns: u64,
}
