//! Records: plain structs that cross from kernel to user space as bytes.
//!
//! `record!` writes a struct once and makes any padding a compile error, so that no kernel
//! memory leaks through a gap and both sides agree on every byte. [`read`] is the only way back
//! from bytes; it checks the length and never assumes alignment.

/// Types without padding for which every bit pattern is a valid value.
///
/// # Safety
///
/// An implementor has no padding bytes, no invalid bit patterns, no pointers and no interior
/// mutability.
pub unsafe trait Plain: Copy + 'static {
    /// The value whose bytes are all zero.
    #[inline(always)]
    fn zeroed() -> Self {
        // SAFETY: every bit pattern is a valid `Self`, all zeroes included.
        unsafe { core::mem::zeroed() }
    }
}

macro_rules! plain {
    ($($ty:ty),*) => { $(
        // SAFETY: integers have no padding and no invalid bit patterns.
        unsafe impl Plain for $ty {}
    )* };
}
plain!(u8, u16, u32, u64, i8, i16, i32, i64);

// SAFETY: an array has no padding between elements, and its elements are `Plain`.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Fails to compile unless `T` is [`Plain`]; used by `record!` on every field.
pub const fn assert_plain<T: Plain>() {}

/// Defines a wire struct: `repr(C)`, [`Plain`], and a compile error where padding would be.
#[macro_export]
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* pub $field:ident: $ty:ty ),+ $(,)? }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $ty ),+ }

        const _: () = {
            $( $crate::record::assert_plain::<$ty>(); )+
            let fields = 0 $( + size_of::<$ty>() )+;
            assert!(size_of::<$name>() == fields, "padding: reorder or add an explicit field");
        };
        // SAFETY: `repr(C)`, every field is `Plain`, and the assertion above rules out padding.
        unsafe impl $crate::record::Plain for $name {}
    };
}

/// Reads a `T` from the front of `bytes`; `None` if they are too few.
#[inline]
pub fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, and every bit pattern is a valid `T`.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The bytes of `value`, as they cross the wire.
#[inline]
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `T` has no padding, so all its bytes are initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The bytes of `value`, to be written.
#[inline(always)]
pub fn bytes_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: `T` has no padding and no invalid bit patterns.
    unsafe { core::slice::from_raw_parts_mut(core::ptr::from_mut(value).cast(), size_of::<T>()) }
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "records are public, also here")]
mod tests {
    use super::*;

    record! {
        /// A pair.
        pub struct Pair {
            /// First.
            pub a: u16,
            /// Second.
            pub b: [u8; 2],
        }
    }

    #[test]
    fn read_takes_unaligned_and_refuses_short_input() {
        let bytes = [9, 1, 2, 3, 4];
        assert_eq!(
            read::<Pair>(&bytes[1..]),
            Some(Pair {
                a: 0x0201,
                b: [3, 4]
            })
        );
        assert_eq!(read::<Pair>(&bytes[2..]), None);
        assert_eq!(read::<Pair>(&[]), None);
    }

    #[test]
    fn bytes_round_trip() {
        let pair = Pair {
            a: 0xbeef,
            b: [1, 2],
        };
        assert_eq!(read::<Pair>(bytes_of(&pair)), Some(pair));
    }
}
