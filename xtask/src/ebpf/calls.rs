//! No program may call a function of BPF.
//!
//! Such a program is compiled function by function. Kernels before 6.5 (and those of their stable
//! series that lack "bpf: ensure main program has an extable") then list the program twice, once
//! without the table that a load from a bad address is looked up in. Typed loads count on that table:
//! the load that should read as 0 stops the machine instead. Seen on 5.10.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, SectionKind};

/// `BPF_JMP | BPF_CALL`
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_CALL`, in the upper half of the registers' byte.
const OF_BPF: u8 = 1;
/// Where functions are that are not programs.
const FUNCTIONS: &str = ".text";

/// Fails if a program in the object calls a function, and names it.
pub(super) fn refuse(object: &[u8]) -> Result<()> {
    let file = object::File::parse(object).context("read the eBPF object")?;
    let programs = file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text);
    for section in programs {
        let name = section.name()?;
        if name != FUNCTIONS && has_call(section.data()?) {
            bail!(
                "a program in section {name} of the eBPF object calls a function of BPF, which \
                 can stop kernels before 6.5: have it inlined"
            );
        }
    }
    Ok(())
}

/// Whether one of these instructions, of eight bytes each, calls a function of BPF.
fn has_call(instructions: &[u8]) -> bool {
    let (instructions, _none) = instructions.as_chunks::<8>();
    instructions
        .iter()
        .any(|[opcode, registers, ..]| *opcode == CALL && registers >> 4 == OF_BPF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_helpers_are_not_calls_of_functions() {
        let helper = [CALL, 0, 0, 0, 5, 0, 0, 0];
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        assert!(!has_call(&[helper, exit].concat()));
    }

    #[test]
    fn calls_of_functions_are_found() {
        let helper = [CALL, 0, 0, 0, 5, 0, 0, 0];
        let function = [CALL, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert!(has_call(&[helper, function].concat()));
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(refuse(b"ELF").is_err());
    }
}
