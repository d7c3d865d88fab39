//! Everything that touches the running kernel: its BTF, our programs in it, and what they cost.

pub mod attach;
pub mod btf;
pub mod load;
pub mod offsets;
pub mod pod;
