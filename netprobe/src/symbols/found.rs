//! The names that the worker has found, and which of them is that of an address in a stack.

use std::collections::HashMap;

use crate::report::name_bytes;

use super::protocol::{Answer, Missing, Names, plain};

/// The names that were found.
#[derive(Debug, Default)]
pub struct Found {
    pub(super) names: HashMap<(u32, u64), Names>,
    /// Where a process has run several programs with code at an address, or may have: by the names of their threads.
    of_programs: HashMap<(u32, u64, String), Names>,
    /// The same of stacks that are of a program that was looked at.
    of_known: HashMap<(u32, u64), Names>,
    /// Where libraries took turns at an address: by what was mapped.
    of_versions: HashMap<(u32, u64, u32), Names>,
}

/// What shows which program of a process a stack is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose<'a> {
    /// The name of the thread: that of the program, unless the thread has taken another one. None in the middle of exec.
    pub comm: Option<&'a [u8; 16]>,
    /// There is code in it that is only in a program that was looked at.
    pub is_known: bool,
    /// What its process had mapped then, by number; 0 if that is not known.
    pub version: u32,
}

impl Found {
    /// Those for an address in a stack.
    pub fn get(&self, pid: u32, address: u64, whose: Whose<'_>) -> Option<&Names> {
        let names = self.names.get(&(pid, address))?;
        if names.missing == Some(Missing::Remapped) {
            let of_version = self.of_versions.get(&(pid, address, whose.version));
            return Some(of_version.unwrap_or(names));
        }
        if names.missing != Some(Missing::Replaced) {
            return Some(names);
        }
        let by_name = whose.comm.and_then(|comm| {
            let comm = String::from_utf8_lossy(name_bytes(comm));
            let key = (pid, address, plain(&comm));
            self.of_programs.get(&key)
        });
        let known = || self.of_known.get(&(pid, address));
        let found = by_name.or_else(|| known().filter(|_| whose.is_known));
        Some(found.unwrap_or(names))
    }

    /// Whether one of these addresses can only be of a program of the process that was looked at: the kernel chose where
    /// its file is.
    pub fn is_known(&self, pid: u32, mut addresses: impl Iterator<Item = u64>) -> bool {
        addresses.any(|address| {
            let names = self.names.get(&(pid, address));
            names.is_some_and(|names| names.missing.is_none_or(Missing::is_of_known))
        })
    }

    /// Takes other names too, instead of those for the same addresses.
    pub fn extend(&mut self, other: Self) {
        self.names.extend(other.names);
        self.of_programs.extend(other.of_programs);
        self.of_known.extend(other.of_known);
        self.of_versions.extend(other.of_versions);
    }

    pub(super) fn take(&mut self, pid: u32, answer: Answer) {
        match answer {
            Answer::Names(address, names) => {
                self.names.insert((pid, address), names);
            }
            Answer::Of(program, address, names) => {
                self.of_programs.insert((pid, address, program), names);
            }
            Answer::OfKnown(address, names) => {
                self.of_known.insert((pid, address), names);
            }
            Answer::OfVersion(version, address, names) => {
                self.of_versions.insert((pid, address, version), names);
            }
            Answer::Stack(..) | Answer::Done(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(frame: &str, missing: Option<Missing>) -> Names {
        Names {
            frames: vec![frame.to_owned()],
            missing,
            is_call: true,
        }
    }

    #[test]
    fn after_exec_the_name_of_the_thread_tells_the_program() {
        let mut found = Found::default();
        found.take(
            7,
            Answer::Names(1, names("[unknown: exec]", Some(Missing::Replaced))),
        );
        found.take(7, Answer::Of("exa".into(), 1, names("aaa_leaf", None)));
        found.take(7, Answer::Of("exb".into(), 1, names("bbb_leaf", None)));
        found.take(7, Answer::Names(2, names("both", None)));
        let of = |address, comm: &str| {
            let mut bytes = [0; 16];
            bytes[..comm.len()].copy_from_slice(comm.as_bytes());
            let whose = Whose {
                comm: Some(&bytes),
                is_known: false,
                version: 0,
            };
            found.get(7, address, whose).unwrap().frames[0].clone()
        };
        assert_eq!(of(1, "exa"), "aaa_leaf");
        assert_eq!(of(1, "exb"), "bbb_leaf");
        assert_eq!(of(1, "renamed"), "[unknown: exec]");
        assert_eq!(of(2, "exa"), "both");
    }

    #[test]
    fn where_libraries_took_turns_what_was_mapped_tells_which_one_ran() {
        let mut found = Found::default();
        let unsure = names("[unknown: dlopen]", Some(Missing::Remapped));
        found.take(7, Answer::Names(1, unsure));
        found.take(7, Answer::OfVersion(1, 1, names("alpha", None)));
        found.take(7, Answer::OfVersion(2, 1, names("beta", None)));
        let of = |version| {
            let whose = Whose {
                comm: None,
                is_known: true,
                version,
            };
            found.get(7, 1, whose).unwrap().frames[0].clone()
        };
        assert_eq!(
            [of(1), of(2), of(0)],
            ["alpha", "beta", "[unknown: dlopen]"]
        );
    }

    #[test]
    fn code_that_only_a_known_program_has_tells_whose_a_stack_is() {
        let mut found = Found::default();
        for (address, missing) in [(1, Some(Missing::Replaced)), (2, Some(Missing::Unmapped))] {
            found.take(7, Answer::Names(address, names("[unknown]", missing)));
        }
        found.take(
            7,
            Answer::Names(3, names("[libc.so]", Some(Missing::Stripped))),
        );
        found.take(7, Answer::OfKnown(1, names("main", None)));
        let of = |places: &[u64]| {
            let whose = Whose {
                comm: None,
                is_known: found.is_known(7, places.iter().copied()),
                version: 0,
            };
            found.get(7, places[0], whose).unwrap().frames[0].clone()
        };
        assert_eq!(of(&[1]), "[unknown]");
        assert_eq!(of(&[1, 2]), "[unknown]");
        assert_eq!(of(&[1, 3]), "main");
    }
}
