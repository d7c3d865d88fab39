//! Whether a function may return to an address: a caller that frame pointers have led to is believed only then, as what
//! stands there may be any data. Code in files is read for that; of other code it is not known, and taken for granted.

use std::{cell::RefCell, collections::HashMap};

use super::images::{Content, Images, Mapping};

/// Places that are remembered.
const MOST_KNOWN: usize = 32_768;
/// Bytes of the longest call: its code, two bytes of how the target is found, and four of its offset.
const CALL_BYTES: usize = 7;
/// `call` with an offset of four bytes, and `call` with a register or memory, whose next byte has 2 in its middle.
const CALL: u8 = 0xe8;
const CALL_INDIRECT: u8 = 0xff;
/// `rt_sigreturn` as C libraries and Go call it: the kernel lets handlers of signals return there.
const SIGNAL_RETURNS: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05],
    &[0xb8, 15, 0, 0, 0, 0x0f, 0x05],
];
/// Bytes of the longer one.
const SIGNAL_RETURN_BYTES: usize = 9;

/// What is known of places in files, by the number of the file.
#[derive(Debug, Default)]
pub(super) struct Returns {
    known: RefCell<HashMap<(usize, u64), bool>>,
}

impl Returns {
    /// Whether a function may return to an address of a mapping, as far as can be told.
    pub(super) fn is_return(&self, mapping: &Mapping, address: u64, images: &Images) -> bool {
        match mapping.content {
            Content::File(number, _) => {
                let offset = address.wrapping_sub(mapping.start);
                self.is_return_in(number, offset.wrapping_add(mapping.offset), images)
            }
            Content::Refused(..) | Content::Anonymous | Content::Kernel(_) => true,
        }
    }

    /// The same of a place in a file.
    pub(super) fn is_return_in(&self, number: usize, offset: u64, images: &Images) -> bool {
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        let known = known.entry((number, offset));
        *known
            .or_insert_with(|| read(number, offset, images).is_none_or(|around| around.is_return()))
    }
}

/// The code around a place.
struct Surroundings {
    before: [u8; CALL_BYTES],
    /// Zeroes where the file ends.
    after: [u8; SIGNAL_RETURN_BYTES],
}

fn read(number: usize, offset: u64, images: &Images) -> Option<Surroundings> {
    let begin = offset.checked_sub(CALL_BYTES as u64)?;
    let mut bytes = [0; CALL_BYTES + SIGNAL_RETURN_BYTES];
    let read = images.read(number, begin, &mut bytes)?;
    let (before, after) = bytes.split_first_chunk()?;
    (read >= CALL_BYTES).then_some(Surroundings {
        before: *before,
        after: after.try_into().ok()?,
    })
}

impl Surroundings {
    /// Also before a call: goroutines end there (`runtime.goexit`), and before 1.18 deferred functions returned to the
    /// call that had run them.
    fn is_return(&self) -> bool {
        let is_way_back = |code: &&[u8]| self.after.starts_with(code);
        self.after[0] == CALL
            || SIGNAL_RETURNS.iter().any(is_way_back)
            || ends_with_call(self.before)
    }
}

fn ends_with_call(code: [u8; CALL_BYTES]) -> bool {
    let is_indirect = |call: &[u8]| {
        call[0] == CALL_INDIRECT
            && call[1] & 0o070 == 0o020
            && call.len() == 2 + operand_bytes(call[1], call.get(2).copied())
    };
    code[CALL_BYTES - 5] == CALL
        || (2..=CALL_BYTES).any(|bytes| is_indirect(&code[CALL_BYTES - bytes..]))
}

/// Bytes that follow the one that tells the operand (`ModRM`): another one about it (`SIB`), and an offset.
const fn operand_bytes(operand: u8, next: Option<u8>) -> usize {
    const REGISTER: u8 = 3;
    let (kind, base) = (operand >> 6, operand & 7);
    let has_more = kind != REGISTER && base == 4;
    let base = match next {
        Some(next) if has_more => next & 7,
        Some(_) | None => base,
    };
    let offset = match kind {
        0 if base == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    has_more as usize + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_return(before: &[u8], after: &[u8]) -> bool {
        let mut surroundings = Surroundings {
            before: [0; CALL_BYTES],
            after: [0; SIGNAL_RETURN_BYTES],
        };
        surroundings.before[CALL_BYTES - before.len()..].copy_from_slice(before);
        surroundings.after[..after.len()].copy_from_slice(after);
        surroundings.is_return()
    }

    #[test]
    fn functions_return_behind_calls() {
        for call in [
            &[0xe8, 1, 2, 3, 4][..],
            // Of rax, r8, (rax), (rax,rax,8), 8(rax), 8(rsp), at the next instruction, of a table, far from rbx and from rsp.
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd0],
            &[0xff, 0x10],
            &[0xff, 0x14, 0xc0],
            &[0xff, 0x50, 8],
            &[0xff, 0x54, 0x24, 8],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x14, 0xc5, 1, 2, 3, 4],
            &[0xff, 0x93, 1, 2, 3, 4],
            &[0xff, 0x94, 0x24, 1, 2, 3, 4],
        ] {
            assert!(is_return(call, &[]), "{call:x?}");
        }
    }

    #[test]
    fn functions_do_not_return_to_where_others_begin() {
        // After `ret`, padding of two kinds, a jump, `push` with the code of calls, and a call that would be longer.
        for before in [
            &[0xc9, 0xc3][..],
            &[0xcc, 0xcc, 0xcc],
            &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0],
            &[0xe9, 1, 2, 3, 4],
            &[0xff, 0xf0],
            &[0xff, 0x14],
            &[0xff, 0x15, 1, 2],
        ] {
            // endbr64, push %rbp.
            assert!(
                !is_return(before, &[0xf3, 0x0f, 0x1e, 0xfa, 0x55]),
                "{before:x?}"
            );
        }
    }

    #[test]
    fn handlers_of_signals_and_goroutines_return_where_nothing_calls() {
        for code in SIGNAL_RETURNS {
            assert!(is_return(&[0x90], code));
        }
        assert!(is_return(&[0x90], &[0xe8, 1, 2, 3, 4]));
    }
}
