//! Wire structs as map keys and values.

use netprobe_common::record::Plain;

/// A wire struct that aya may copy to and from map memory.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

// SAFETY: `Plain` promises that `T` has no padding and no invalid bit patterns.
unsafe impl<T: Plain> aya::Pod for Wire<T> {}
