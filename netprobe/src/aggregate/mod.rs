//! From readings of the kernel's maps to totals and folded stacks.

pub mod connects;
pub mod groups;
pub mod stacks;
pub mod summary;
