//! Names for places in ELF files, by blazesym: symbol tables, and debug information with inlined
//! functions, also where a build id or a debug link leads to it.

use std::path::Path;

use blazesym::symbolize::{
    Input, Sym, Symbolized, Symbolizer,
    source::{Elf, Source},
};

/// Bytes of a name that are kept; templates can be longer than anybody reads.
const NAME_BYTES: usize = 2048;

/// Looks up names, and remembers the files it has read.
#[derive(Debug)]
pub(super) struct Naming {
    symbolizer: Symbolizer,
    uses_debug_info: bool,
}

impl Naming {
    /// Reads nothing yet.
    pub(super) fn new(uses_debug_info: bool) -> Self {
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .enable_code_info(uses_debug_info)
            .enable_inlined_fns(uses_debug_info)
            .build();
        Self {
            symbolizer,
            uses_debug_info,
        }
    }

    /// For each offset in the file at `path` its function, and those inlined there.
    pub(super) fn names(&self, path: &Path, offsets: &[u64]) -> Vec<Option<Vec<String>>> {
        let mut elf = Elf::new(path);
        elf.debug_syms = self.uses_debug_info;
        let source = Source::Elf(elf);
        let found = self
            .symbolizer
            .symbolize(&source, Input::FileOffset(offsets));
        match found {
            Ok(found) => found.into_iter().map(frames).collect(),
            Err(error) => {
                log::debug!("symbols of {}: {error}", path.display());
                vec![None; offsets.len()]
            }
        }
    }
}

fn frames(symbolized: Symbolized<'_>) -> Option<Vec<String>> {
    let Symbolized::Sym(symbol) = symbolized else {
        return None;
    };
    let Sym { name, inlined, .. } = symbol;
    let mut frames = vec![cut(&name).to_owned()];
    frames.extend(
        inlined
            .iter()
            .map(|inner| format!("{}_[i]", cut(&inner.name))),
    );
    Some(frames)
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES)]
}
