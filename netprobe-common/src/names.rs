//! Names of kernel functions, asked of the kernel itself: a program writes what it calls an address.

use crate::record;

/// Addresses that are asked for at a time.
pub const NAMES_AT_ONCE: usize = 16;
/// Room for a name: the longest function, its module, and two numbers.
pub const NAME_BYTES: usize = 248;

record! {
    /// An address in the kernel's code, and what the kernel calls it.
    pub struct Name {
        /// The address; 0 for none.
        pub address: u64,
        /// As `%pS` of `printk`: `FUNCTION+0xOFFSET/0xSIZE [MODULE]`, or the bare number; ends with a 0.
        pub text: [u8; NAME_BYTES],
    }
}

record! {
    /// As many as are asked for at a time.
    pub struct Names {
        /// Those up to the first that is none.
        pub each: [Name; NAMES_AT_ONCE],
    }
}
