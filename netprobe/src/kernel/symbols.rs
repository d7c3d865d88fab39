//! Names of kernel functions: asked of the kernel where that is possible, or else from `/proc/kallsyms`, which is read once.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
    sync::Arc,
};

use netprobe_common::names::NAMES_AT_ONCE;

use super::{
    kallsyms::Kallsyms,
    namer::{Namer, Place},
};

/// A function and how far into it an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The function, or the bare address if it is unknown.
    pub function: Arc<str>,
    /// Bytes from its start.
    pub offset: u64,
    /// Whether a name was found.
    pub is_known: bool,
}

impl Symbol {
    /// Its name in a graph, where bare addresses would only keep apart what nobody can tell apart.
    pub fn drawn(self) -> Arc<str> {
        if self.is_known {
            self.function
        } else {
            Arc::from("[unknown]")
        }
    }
}

/// Whether a line of kallsyms has no address.
fn is_hidden(line: &str) -> bool {
    let address = line.split(' ').next().unwrap_or_default();
    address.bytes().all(|digit| digit == b'0')
}

/// Looks up kernel addresses, each once. It is bounded: addresses come from the kernel's text,
/// and the memory is given up when they are more than any kernel has places.
#[derive(Debug)]
pub struct Symbols {
    /// Until it fails.
    namer: Option<Namer>,
    kallsyms: Option<Kallsyms>,
    known: HashMap<u64, Symbol>,
}

/// Distinct addresses kept at once.
const MOST: usize = 65_536;

impl Symbols {
    /// Reads nothing yet.
    pub fn new() -> Self {
        Self {
            namer: None,
            kallsyms: None,
            known: HashMap::new(),
        }
    }

    /// Asks the kernel as long as it answers: for addresses of code that is still there when it is asked.
    #[must_use]
    pub fn asking(self, namer: Option<Namer>) -> Self {
        Self { namer, ..self }
    }

    /// Reads the names, if they are not asked for and that was not done before. Those of programs are there only as long as
    /// these are attached.
    pub fn learn(&mut self) {
        if self.namer.is_none() {
            self.kallsyms();
        }
    }

    /// Asks for the names of these addresses at once, which is faster than one by one.
    pub fn learn_all(&mut self, addresses: impl Iterator<Item = u64>) {
        let mut unknown: Vec<u64> = addresses
            .filter(|address| !self.known.contains_key(address))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        for some in unknown.chunks(NAMES_AT_ONCE) {
            self.ask(some);
        }
    }

    fn ask(&mut self, addresses: &[u64]) {
        let Some(namer) = &mut self.namer else {
            return;
        };
        let Some(places) = namer.ask(addresses) else {
            log::debug!("the kernel does not answer for names any more");
            self.namer = None;
            return;
        };
        for (address, place) in addresses.iter().zip(places) {
            self.keep(*address, place);
        }
    }

    /// Whether the kernel hides the addresses of its functions from us.
    pub fn are_hidden() -> bool {
        // The first may be variables of each CPU, which begin at 0.
        const LINES: usize = 64;
        File::open("/proc/kallsyms").map_or(true, |file| {
            let mut lines = BufReader::new(file).lines().take(LINES);
            lines.all(|line| line.is_ok_and(|line| is_hidden(&line)))
        })
    }

    /// The function at `address`. Says once why there is no name where the kernel hides all.
    pub fn lookup(&mut self, address: u64) -> Symbol {
        if let Some(symbol) = self.known.get(&address) {
            return symbol.clone();
        }
        self.ask(&[address]);
        if let Some(symbol) = self.known.get(&address) {
            return symbol.clone();
        }
        let place = self.kallsyms().at(address);
        let place = place.map(|(function, offset)| (function.to_owned(), offset));
        self.keep(address, place)
    }

    fn keep(&mut self, address: u64, place: Place) -> Symbol {
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let symbol = match place {
            Some((function, offset)) => Symbol {
                function: Arc::from(function),
                offset,
                is_known: true,
            },
            None => Symbol {
                function: Arc::from(format!("{address:#x}")),
                offset: 0,
                is_known: false,
            },
        };
        self.known.insert(address, symbol.clone());
        symbol
    }

    fn kallsyms(&mut self) -> &Kallsyms {
        self.kallsyms.get_or_insert_with(|| {
            let kallsyms = Kallsyms::load();
            if kallsyms.is_empty() {
                log::warn!(
                    "functions of the kernel have no names: it hides their addresses (needs CAP_SYSLOG, and \
                     kernel.kptr_restrict below 2)"
                );
            }
            kallsyms
        })
    }
}

impl Default for Symbols {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_all_zeroes_is_hidden() {
        assert!(is_hidden("0000000000000000 T _text"));
        assert!(!is_hidden("ffffffff81000000 T _text"));
        assert!(!is_hidden("0000000000001000 A cpu_debug_store"));
    }
}
