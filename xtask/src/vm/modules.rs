//! The kernel modules that go into a machine, with what they depend on and the aliases they answer to.
//!
//! A Debian package has no modules.dep (it is made at installation), so the dependencies are read
//! from the modules themselves: `depends=` and `alias=` in the ELF section `.modinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::kernels::{self, Kernel};

/// The modules to pack, by the start of their name: whatever of these a kernel has.
const PACKED: [&str; 24] = [
    "act_",
    "cls_",
    "crc32c",
    "dummy",
    "ifb",
    "inet_diag",
    "ip6_tables",
    "ip6t_",
    "ip6table_",
    "ip_set",
    "ip_tables",
    "ipt_",
    "iptable_",
    "libcrc32c",
    "nf_",
    "nfnetlink",
    "nft_",
    "sch_",
    "tcp_",
    "tun",
    "udp_diag",
    "unix_diag",
    "veth",
    "xt_",
];

/// The modules of a kernel that go into a machine.
pub(super) struct Modules {
    /// The folder that paths are relative to.
    folder: PathBuf,
    /// By name.
    packed: BTreeMap<String, Module>,
}

/// One module.
struct Module {
    /// Relative to the folder of the kernel's modules.
    path: PathBuf,
    depends: Vec<String>,
    aliases: Vec<String>,
}

impl Modules {
    /// The packed modules of this kernel; those in `wanted` must be among them or built in.
    pub(super) fn select(kernel: &Kernel, wanted: &[String]) -> Result<Self> {
        let folder = kernel.modules();
        let all = index(&folder)?;
        let builtin = builtin(&folder)?;
        for name in wanted {
            if !all.contains_key(name) && !builtin.contains(name) {
                bail!("kernel {} has no module {name}", kernel.version);
            }
        }
        let listed = all
            .keys()
            .filter(|name| PACKED.iter().any(|start| name.starts_with(start)));
        let mut open: Vec<_> = listed.chain(wanted).cloned().collect();
        let mut packed = BTreeMap::new();
        while let Some(name) = open.pop() {
            let Some(path) = all.get(&name).filter(|_| !packed.contains_key(&name)) else {
                continue;
            };
            let module = Module::read(&folder, path)?;
            open.extend(module.depends.iter().cloned());
            packed.insert(name, module);
        }
        Ok(Self { folder, packed })
    }

    /// The files, each by its path relative to the folder of the kernel's modules.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        let files = self.packed.values();
        files.map(|module| (module.path.as_path(), self.folder.join(&module.path)))
    }

    /// The text of `modules.dep`: after each module what must be loaded before it, the first last.
    pub(super) fn dep(&self) -> String {
        let line = |(name, module): (&String, &Module)| {
            let mut order = Vec::new();
            self.visit(name, &mut order);
            let before = order.iter().rev().filter(|other| *other != name);
            let paths: Vec<_> = before
                .filter_map(|other| Some(self.packed.get(other)?.path.display().to_string()))
                .collect();
            format!("{}: {}\n", module.path.display(), paths.join(" "))
        };
        self.packed.iter().map(line).collect()
    }

    /// The text of `modules.alias`, by which the kernel itself asks for modules.
    pub(super) fn alias(&self) -> String {
        let lines = |(name, module): (&String, &Module)| {
            let aliases = module.aliases.iter();
            let lines = aliases.map(|alias| format!("alias {alias} {name}\n"));
            lines.collect::<String>()
        };
        self.packed.iter().map(lines).collect()
    }

    /// Appends a module after everything that it depends on.
    fn visit(&self, name: &str, order: &mut Vec<String>) {
        if order.iter().any(|done| done == name) {
            return;
        }
        for dependency in self
            .packed
            .get(name)
            .iter()
            .flat_map(|module| &module.depends)
        {
            self.visit(dependency, order);
        }
        order.push(name.to_owned());
    }
}

impl Module {
    fn read(folder: &Path, path: &Path) -> Result<Self> {
        let file = folder.join(path);
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let info = section(&bytes, b".modinfo")
            .with_context(|| format!("no .modinfo in {}", file.display()))?;
        let depends = values(info, "depends=");
        Ok(Self {
            path: path.to_owned(),
            depends: depends
                .flat_map(|list| list.split(',').map(normal).collect::<Vec<_>>())
                .filter(|name| !name.is_empty())
                .collect(),
            aliases: values(info, "alias=").map(str::to_owned).collect(),
        })
    }
}

/// The values of a key in `.modinfo`, which is a list of strings that each end with a zero byte.
fn values<'a>(info: &'a [u8], key: &'a str) -> impl Iterator<Item = &'a str> {
    info.split(|byte| *byte == 0)
        .filter_map(|text| str::from_utf8(text).ok())
        .filter_map(move |text| text.strip_prefix(key))
}

/// The contents of a section of a 64-bit little-endian ELF file.
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let word = |at: usize| {
        let bytes = elf.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let half = |at: usize| {
        let bytes = elf.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(u16::from_le_bytes(bytes)))
    };
    // Elf64_Ehdr: e_shoff, e_shentsize, e_shnum, e_shstrndx. Elf64_Shdr: sh_offset, sh_size.
    let (table, size, count, names) = (word(40)?, half(58)?, half(60)?, half(62)?);
    let contents = |header: usize| {
        let start = word(header + 24)?;
        elf.get(start..start.checked_add(word(header + 32)?)?)
    };
    let names = contents(table + size * names)?;
    for header in (0..count).map(|index| table + size * index) {
        let name_at = usize::try_from(u32::try_from(word(header)? & 0xffff_ffff).ok()?).ok()?;
        let found = names.get(name_at..)?.split(|byte| *byte == 0).next()?;
        if found == name {
            return contents(header);
        }
    }
    None
}

/// Every module of a kernel by its name.
fn index(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut modules = BTreeMap::new();
    for file in kernels::walk(folder)? {
        if file.extension().is_some_and(|suffix| suffix == "ko") {
            let path = file.strip_prefix(folder).unwrap_or(&file).to_owned();
            modules.insert(module_name(&path), path);
        }
    }
    Ok(modules)
}

/// The names of what is built into the kernel instead.
fn builtin(folder: &Path) -> Result<BTreeSet<String>> {
    let file = folder.join("modules.builtin");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Ok(text
        .lines()
        .map(|line| module_name(Path::new(line)))
        .collect())
}

fn module_name(path: &Path) -> String {
    normal(&path.file_stem().unwrap_or_default().to_string_lossy())
}

/// A dash and an underscore are the same in the name of a module.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &[&str], aliases: &[&str]) -> (String, Module) {
        let own = |list: &[&str]| list.iter().map(|&text| text.into()).collect();
        let module = Module {
            path: PathBuf::from(format!("kernel/{name}.ko")),
            depends: own(depends),
            aliases: own(aliases),
        };
        (name.into(), module)
    }

    #[test]
    fn dependencies_are_listed_so_that_the_last_is_loaded_first() {
        let modules = Modules {
            folder: PathBuf::new(),
            packed: BTreeMap::from([
                module("nft_ct", &["nf_tables", "nf_conntrack"], &["nft-expr-2-ct"]),
                module("nf_tables", &["nfnetlink"], &[]),
                module("nf_conntrack", &["nf_defrag", "built_in"], &[]),
                module("nf_defrag", &[], &[]),
                module("nfnetlink", &[], &[]),
            ]),
        };
        let expected = "\
            kernel/nf_conntrack.ko: kernel/nf_defrag.ko\n\
            kernel/nf_defrag.ko: \n\
            kernel/nf_tables.ko: kernel/nfnetlink.ko\n\
            kernel/nfnetlink.ko: \n\
            kernel/nft_ct.ko: kernel/nf_conntrack.ko kernel/nf_defrag.ko kernel/nf_tables.ko kernel/nfnetlink.ko\n";
        assert_eq!(modules.dep(), expected);
        assert_eq!(modules.alias(), "alias nft-expr-2-ct nft_ct\n");
    }

    #[test]
    fn modinfo_is_read_by_key() {
        let info = b"license=GPL\0depends=a,b-c\0alias=x\0alias=y\0";
        assert_eq!(values(info, "alias=").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(values(info, "depends=").collect::<Vec<_>>(), ["a,b-c"]);
        assert_eq!(normal("b-c"), "b_c");
    }

    #[test]
    fn sections_are_found_by_name() {
        let mut elf = vec![0; 64];
        elf[40] = 64; // the section headers follow this header
        elf[58] = 64;
        elf[60] = 2;
        elf[62] = 1; // the second section has the names
        let names = b"\0.modinfo\0.shstrtab\0";
        let data = b"alias=x\0";
        let data_at = 64 + 2 * 64;
        for (name, at, size) in [
            (1, data_at, data.len()),
            (10, data_at + data.len(), names.len()),
        ] {
            let mut header = [0; 64];
            header[0] = name;
            header[24] = u8::try_from(at).expect("small");
            header[32] = u8::try_from(size).expect("small");
            elf.extend(header);
        }
        elf.extend(data);
        elf.extend(names);
        assert_eq!(section(&elf, b".modinfo"), Some(&data[..]));
        assert_eq!(section(&elf, b".text"), None);
        assert_eq!(section(&elf[..100], b".modinfo"), None);
    }
}
