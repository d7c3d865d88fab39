//! Names of kernel functions, by blazesym from `/proc/kallsyms`.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
    sync::Arc,
};

use blazesym::{
    MaybeDefault,
    symbolize::{
        Input, Symbolized, Symbolizer,
        source::{Kernel, Source},
    },
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

/// Looks up kernel addresses, each once. It is bounded: addresses come from the kernel's text,
/// and the memory is given up when they are more than any kernel has places.
#[derive(Debug)]
pub struct Symbols {
    symbolizer: Symbolizer,
    known: HashMap<u64, Symbol>,
}

/// Distinct addresses kept at once.
const MOST: usize = 65_536;

impl Symbols {
    /// Reads nothing yet.
    pub fn new() -> Self {
        let symbolizer = Symbolizer::builder()
            .enable_code_info(false)
            .enable_inlined_fns(false)
            .build();
        Self {
            symbolizer,
            known: HashMap::new(),
        }
    }

    /// The function at `address`. Says once why there is no name where the kernel hides all.
    pub fn lookup(&mut self, address: u64) -> Symbol {
        if let Some(symbol) = self.known.get(&address) {
            return symbol.clone();
        }
        if self.known.is_empty() && are_hidden() {
            log::warn!(
                "functions of the kernel have no names: it hides their addresses (needs CAP_SYSLOG, and kernel.kptr_restrict \
                 below 2)"
            );
        }
        if self.known.len() >= MOST {
            self.known.clear();
        }
        let symbol = self.resolve(address);
        self.known.insert(address, symbol.clone());
        symbol
    }

    fn resolve(&self, address: u64) -> Symbol {
        let kernel = Kernel {
            kallsyms: MaybeDefault::Default,
            vmlinux: MaybeDefault::None,
            debug_syms: false,
            ..Kernel::default()
        };
        let found = self
            .symbolizer
            .symbolize_single(&Source::Kernel(kernel), Input::AbsAddr(address));
        match found {
            Ok(Symbolized::Sym(symbol)) => Symbol {
                function: Arc::from(symbol.name.as_ref()),
                offset: symbol.offset as u64,
                is_known: true,
            },
            Ok(Symbolized::Unknown(_)) | Err(_) => Symbol {
                function: Arc::from(format!("{address:#x}")),
                offset: 0,
                is_known: false,
            },
        }
    }
}

/// Whether the kernel shows zeroes for the addresses of its functions (`kallsyms_show_value`).
fn are_hidden() -> bool {
    let mut line = String::new();
    let file = File::open("/proc/kallsyms").map(BufReader::new);
    let read = file.and_then(|mut file| file.read_line(&mut line));
    let address = line.split(' ').next().unwrap_or_default();
    read.is_ok() && !address.is_empty() && address.bytes().all(|digit| digit == b'0')
}

impl Default for Symbols {
    fn default() -> Self {
        Self::new()
    }
}
