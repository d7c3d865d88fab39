//! How the programs read packets: `bpf_rdonly_cast` (from 6.2 on) gives an address the kernel's type of
//! a header, whose fields are then plain loads. aya cannot call kernel functions by name, so
//! the object carries a mark where the call belongs, and it is replaced here.

use std::fs;

use netprobe_common::config::{CAST_MARK, CastTypes};

use super::btf::KernelBtf;

const CAST: &str = "bpf_rdonly_cast";
const IPV4: &str = "iphdr";
const IPV6: &str = "ipv6hdr";
const TCP: &str = "tcphdr";
const SOCK: &str = "sock";

/// What is asked of the kernel's types, by name.
pub(super) fn names() -> [&'static str; 5] {
    [CAST, IPV4, IPV6, TCP, SOCK]
}

/// The kernel function and its types; none of it where any is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Casts {
    function: Option<u32>,
    types: Option<CastTypes>,
}

impl Casts {
    /// Looks them up.
    pub fn find(kernel: &KernelBtf) -> Self {
        let types = || {
            Some(CastTypes {
                ipv4: kernel.struct_id(IPV4)?,
                ipv6: kernel.struct_id(IPV6)?,
                tcp: kernel.struct_id(TCP)?,
                sock: kernel.struct_id(SOCK)?,
            })
        };
        match (kernel.function_id(CAST), types()) {
            (Some(function), Some(types)) if has_compiler() => Self {
                function: Some(function),
                types: Some(types),
            },
            _ => Self::default(),
        }
    }

    /// The types that addresses may be given.
    pub fn types(self) -> CastTypes {
        self.types.unwrap_or(CastTypes {
            ipv4: 0,
            ipv6: 0,
            tcp: 0,
            sock: 0,
        })
    }

    /// Puts this kernel's call in place of the mark.
    pub fn write_into(self, object: &mut [u8]) {
        let mark = instruction(0x85, 0, CAST_MARK);
        let call = match self.function {
            // BPF_CALL with BPF_PSEUDO_KFUNC_CALL as source register.
            Some(id) => instruction(0x85, 0x20, id.cast_signed()),
            // r0 = r1; never reached.
            None => instruction(0xbf, 0x10, 0),
        };
        let (words, _rest) = object.as_chunks_mut::<8>();
        for word in words.iter_mut().filter(|word| **word == mark) {
            *word = call;
        }
    }
}

/// Kernel functions can only be called from compiled programs.
fn has_compiler() -> bool {
    fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|mode| mode.trim() != "0")
}

/// `struct bpf_insn` without an offset.
fn instruction(code: u8, registers: u8, immediate: i32) -> [u8; 8] {
    let [a, b, c, d] = immediate.to_ne_bytes();
    [code, registers, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_calls_and_nothing_else_changes() {
        let mut object = vec![7; 32];
        object[8..16].copy_from_slice(&instruction(0x85, 0, CAST_MARK));
        let casts = Casts {
            function: Some(0x0102),
            types: None,
        };
        let mut expected = object.clone();
        expected[8..16].copy_from_slice(&[0x85, 0x20, 0, 0, 2, 1, 0, 0]);
        let mut written = object.clone();
        casts.write_into(&mut written);
        assert_eq!(written, expected);
        expected[8..16].copy_from_slice(&[0xbf, 0x10, 0, 0, 0, 0, 0, 0]);
        Casts::default().write_into(&mut object);
        assert_eq!(object, expected);
    }

    #[test]
    fn the_object_has_marks_at_whole_instructions() {
        let object = super::super::object::unpack().unwrap();
        let mut plain = object.clone();
        Casts::default().write_into(&mut plain);
        let mark = instruction(0x85, 0, CAST_MARK);
        assert_ne!(plain, object);
        assert!(!plain.windows(8).any(|bytes| bytes == mark));
    }
}
