//! Names of kernel functions, asked of the kernel itself (`bpf_snprintf`, since 5.13): a few microseconds for those that are
//! wanted, where `/proc/kallsyms` takes tens of milliseconds to list all.

use std::{fmt, os::fd::AsFd, str};

use anyhow::{Context, Result, anyhow};
use aya::{
    maps::{Array, MapData},
    programs::{ProgramError, ProgramFd, RawTracePoint},
};
use netprobe_common::{
    names::{NAMES_AT_ONCE, Names},
    record::Plain,
};

use super::{
    pod::{self, Wire},
    session::Session,
};

/// The program that asks.
pub(super) const PROGRAM: &str = "names";

/// A function, and how far into it an address is; nothing if the address has no name.
pub(super) type Place = Option<(String, u64)>;

/// Asks for names, whatever becomes of the session.
pub struct Namer {
    program: ProgramFd,
    names: Array<MapData, Wire<Names>>,
}

impl fmt::Debug for Namer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namer").finish_non_exhaustive()
    }
}

impl Namer {
    /// Loads the program, which samplers have.
    ///
    /// # Errors
    ///
    /// The kernel has no `bpf_snprintf`, or does not run programs for us.
    pub fn start(session: &mut Session) -> Result<Self> {
        let ebpf = session.ebpf();
        let map = ebpf.take_map("NAMES").context("no map NAMES")?;
        let program = ebpf.program_mut(PROGRAM).context("no program names")?;
        let program: &mut RawTracePoint = program
            .try_into()
            .map_err(|error: ProgramError| anyhow!(error))?;
        program.load()?;
        let mut namer = Self {
            program: program.fd()?.try_clone()?,
            names: Array::try_from(map)?,
        };
        namer
            .ask(&[])
            .context("the kernel runs no programs for us")?;
        Ok(namer)
    }

    /// Asks for [`NAMES_AT_ONCE`] addresses at most; `None` if that failed.
    pub(super) fn ask(&mut self, addresses: &[u64]) -> Option<Vec<Place>> {
        let mut names = Names::zeroed();
        for (name, address) in names.each.iter_mut().zip(addresses) {
            name.address = *address;
        }
        self.names.set(0, Wire(names), 0).ok()?;
        pod::run_once(self.program.as_fd())?;
        let Wire(names) = self.names.get(&0, 0).ok()?;
        let answers = names.each.iter().take(addresses.len().min(NAMES_AT_ONCE));
        Some(answers.map(|name| parse(&name.text)).collect())
    }
}

/// Reads `FUNCTION+0xOFFSET/0xSIZE [MODULE]`.
fn parse(text: &[u8]) -> Place {
    let end = text.iter().position(|byte| *byte == 0)?;
    let text = str::from_utf8(&text[..end]).ok()?;
    let place = text.split(' ').next()?;
    let (function, numbers) = place.rsplit_once("+0x")?;
    let (offset, _size) = numbers.split_once("/0x")?;
    let offset = u64::from_str_radix(offset, 16).ok()?;
    Some((function.to_owned(), offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_function_and_an_offset() {
        let of = |text: &str| parse(format!("{text}\0rest").as_bytes());
        let place = |name: &str, offset| Some((name.to_owned(), offset));
        assert_eq!(of("tcp_v4_rcv+0x1f/0xe30"), place("tcp_v4_rcv", 0x1f));
        let module = of("nf_conntrack_in+0x0/0x5f0 [nf_conntrack]");
        assert_eq!(module, place("nf_conntrack_in", 0));
        let program = of("bpf_prog_6deef7357e7b4530_drops+0x123/0x200");
        assert_eq!(program, place("bpf_prog_6deef7357e7b4530_drops", 0x123));
        for nothing in ["0xffffffffc0a01234", "", "name+0xzz/0x10"] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
        assert_eq!(parse(b"tcp_v4_rcv+0x1f/0xe30"), None, "cut");
    }
}
