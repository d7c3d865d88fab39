//! The running kernel's own description of its types (BTF): the only source of offsets,
//! prototypes and enum names, so that no kernel version is ever guessed.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use btf_rs::{Backend, Btf, BtfType, Type};
use memmap2::{Mmap, MmapMut};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use super::{
    btf_index::Index,
    pod::{first_btf, kernel_btf, map_constant, map_private},
};

const DIRECTORY: &str = "/sys/kernel/btf";
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// BTF of the kernel or of one of its modules.
pub struct KernelBtf {
    btf: Btf,
    index: Index,
}

/// The kernel's BTF in memory, and where it can be opened: the library that finds types reads on demand only from a
/// file that can be mapped.
#[derive(Debug)]
pub enum Image {
    /// The one in sysfs, which can be mapped from 6.16 on.
    Mapped(Mmap),
    /// A copy in a file without a name.
    Copied {
        /// The file.
        file: File,
        /// What is in it.
        bytes: MmapMut,
    },
}

impl Image {
    /// Maps it where the kernel lets us, and copies it where it does not.
    pub fn read() -> Result<Self> {
        let sysfs = File::open(VMLINUX);
        if let Ok(sysfs) = &sysfs
            && let Ok(bytes) = map_constant(sysfs)
        {
            return Ok(Self::Mapped(bytes));
        }
        // At once if possible; sysfs gives a page at a time.
        if let Some(fd) = first_btf()
            && let Some(length) = kernel_btf(fd.as_fd(), &mut [])
        {
            let (file, mut bytes) = memory(length)?;
            if kernel_btf(fd.as_fd(), &mut bytes) == Some(length) {
                return Ok(Self::Copied { file, bytes });
            }
        }
        sysfs
            .map_err(anyhow::Error::new)
            .and_then(Self::copy)
            .with_context(|| {
                format!("read {VMLINUX} (the kernel must be built with CONFIG_DEBUG_INFO_BTF)")
            })
    }

    fn copy(mut sysfs: File) -> Result<Self> {
        let length = sysfs.metadata()?.len();
        let (file, mut bytes) = memory(usize::try_from(length)?)?;
        sysfs.read_exact(&mut bytes)?;
        Ok(Self::Copied { file, bytes })
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Copied { bytes, .. } => bytes,
        }
    }

    /// Where it can be opened.
    fn path(&self) -> String {
        match self {
            Self::Mapped(_) => VMLINUX.to_owned(),
            Self::Copied { file, .. } => format!("/proc/self/fd/{}", file.as_raw_fd()),
        }
    }
}

fn memory(length: usize) -> Result<(File, MmapMut)> {
    let memory = memfd_create("btf", MemfdFlags::CLOEXEC).context("create a memory file")?;
    let file = File::from(memory);
    size(&file, length as u64)?;
    let bytes = map_private(&file).context("map a memory file")?;
    Ok((file, bytes))
}

/// Gives a memory file its size. The limit of file sizes is meant for files on disks, so it is lifted meanwhile.
fn size(file: &File, length: u64) -> Result<()> {
    let sized = file.set_len(length);
    let too_large = matches!(&sized, Err(error) if error.kind() == io::ErrorKind::FileTooLarge);
    if !too_large {
        return sized.context("size a memory file");
    }
    let limit = getrlimit(Resource::Fsize);
    let lifted = Rlimit {
        current: Some(length),
        maximum: limit.maximum.map(|most| most.max(length)),
    };
    let lift = setrlimit(Resource::Fsize, lifted);
    let sized = lift
        .map_err(io::Error::from)
        .and_then(|()| file.set_len(length));
    if lift.is_ok() {
        setrlimit(Resource::Fsize, limit).context("set the limit of file sizes again")?;
    }
    if let Err(error) = sized {
        log::debug!("the limit of file sizes stays: {error}");
        bail!(
            "the kernel's types take {} KiB, and the limit of file sizes is {} KiB: run `ulimit -f unlimited` first \
             (LimitFSIZE=infinity of a service)",
            length.div_ceil(1024),
            limit.current.unwrap_or_default() / 1024
        );
    }
    Ok(())
}

/// Where a struct member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Offset in bits from the start of the outermost struct.
    pub bit_offset: u32,
    /// Size in bits if it is a bit field.
    pub bit_size: Option<u32>,
}

impl KernelBtf {
    /// Prepares the kernel's BTF for questions about the names in `index`.
    pub fn new(image: &Image, index: Index) -> Result<Self> {
        let btf = Btf::from_file_with_backend(image.path(), Backend::Mmap)
            .with_context(|| format!("parse {VMLINUX}"))?;
        Ok(Self { btf, index })
    }

    /// Opens the BTF of a module, if it is loaded and has any.
    pub fn module(&self, name: &str) -> Option<Self> {
        let path = Path::new(DIRECTORY).join(name);
        Some(Self {
            btf: Btf::from_split_file(path, &self.btf).ok()?,
            index: Index::new(),
        })
    }

    /// Types by name: from the index, or by search in the small BTF of a module.
    fn types(&self, name: &str) -> Vec<Type> {
        match self.index.get(name) {
            Some(ids) => ids
                .iter()
                .filter_map(|found| self.btf.resolve_type_by_id(found.id).ok())
                .collect(),
            None if self.index.is_empty() => {
                self.btf.resolve_types_by_name(name).unwrap_or_default()
            }
            None => Vec::new(),
        }
    }

    /// Finds `struct.member.member`, through nested and anonymous structs and unions.
    pub fn member(&self, path: &str) -> Option<Member> {
        let (root, members) = path.split_once('.')?;
        self.types(root)
            .iter()
            .find_map(|ty| self.member_of(ty, members))
    }

    fn member_of(&self, ty: &Type, path: &str) -> Option<Member> {
        let (Type::Struct(composite) | Type::Union(composite)) = ty else {
            return None;
        };
        let (name, rest) = path
            .split_once('.')
            .map_or((path, None), |(a, b)| (a, Some(b)));
        for member in &composite.members {
            let member_name = self.btf.resolve_name(member).unwrap_or_default();
            let inner = if member_name.is_empty() {
                self.target(member).and_then(|ty| self.member_of(&ty, path))
            } else if member_name != name {
                None
            } else if let Some(rest) = rest {
                self.target(member).and_then(|ty| self.member_of(&ty, rest))
            } else {
                let bit_size = member.bitfield_size().filter(|size| *size != 0);
                Some(Member {
                    bit_offset: 0,
                    bit_size,
                })
            };
            if let Some(inner) = inner {
                return Some(Member {
                    bit_offset: inner.bit_offset + member.bit_offset(),
                    ..inner
                });
            }
        }
        None
    }

    /// Parameter types of a function, as C text.
    pub fn function(&self, name: &str) -> Option<Vec<String>> {
        self.types(name).iter().find_map(|ty| match ty {
            Type::Func(func) => self.parameters(func),
            _ => None,
        })
    }

    /// Id of a function.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.id(name, |ty| matches!(ty, Type::Func(_)))
    }

    /// Id of a struct.
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        self.id(name, |ty| matches!(ty, Type::Struct(_)))
    }

    fn id(&self, name: &str, is_meant: impl Fn(&Type) -> bool) -> Option<u32> {
        let ids = self.index.get(name)?.iter().map(|found| found.id);
        let mut meant = ids.filter(|id| {
            self.btf
                .resolve_type_by_id(*id)
                .is_ok_and(|ty| is_meant(&ty))
        });
        meant.next()
    }

    /// Argument types of a tracepoint (`btf_trace_NAME`), as C text, without `void *__data`.
    pub fn tracepoint(&self, typedef: &str) -> Option<Vec<String>> {
        self.types(typedef).iter().find_map(|ty| match ty {
            Type::Typedef(typedef) => {
                let pointer = self.btf.resolve_chained_type(typedef).ok()?;
                let Type::Ptr(pointer) = pointer else {
                    return None;
                };
                let parameters = self.parameters(&pointer)?;
                Some(parameters.into_iter().skip(1).collect())
            }
            _ => None,
        })
    }

    fn parameters(&self, ty: &impl BtfType) -> Option<Vec<String>> {
        let Type::FuncProto(prototype) = self.btf.resolve_chained_type(ty).ok()? else {
            return None;
        };
        Some(
            prototype
                .parameters
                .iter()
                .map(|parameter| self.spell(parameter))
                .collect(),
        )
    }

    /// Names and values of an enum.
    pub fn enum_values(&self, name: &str) -> Option<Vec<(String, u32)>> {
        self.types(name).iter().find_map(|ty| match ty {
            Type::Enum(found) => Some(
                found
                    .members
                    .iter()
                    .filter_map(|member| Some((self.btf.resolve_name(member).ok()?, member.val())))
                    .collect(),
            ),
            _ => None,
        })
    }

    /// The type behind typedefs and qualifiers.
    fn target(&self, ty: &impl BtfType) -> Option<Type> {
        let mut target = self.btf.resolve_chained_type(ty).ok()?;
        loop {
            target = match &target {
                Type::Typedef(inner) => self.btf.resolve_chained_type(inner).ok()?,
                Type::Const(inner) | Type::Volatile(inner) | Type::Restrict(inner) => {
                    self.btf.resolve_chained_type(inner).ok()?
                }
                Type::TypeTag(inner) => self.btf.resolve_chained_type(inner).ok()?,
                _ => return Some(target),
            };
        }
    }

    /// Spells the type that `ty` refers to; qualifiers are left out, they move between kernels.
    fn spell(&self, ty: &impl BtfType) -> String {
        let named = |prefix: &str, ty: &dyn BtfType| {
            format!("{prefix}{}", self.btf.resolve_name(ty).unwrap_or_default())
        };
        match self.target(ty) {
            Some(Type::Ptr(pointer)) => format!("{} *", self.spell(&pointer)),
            Some(Type::Struct(inner)) => named("struct ", &inner),
            Some(Type::Union(inner)) => named("union ", &inner),
            Some(Type::Fwd(inner)) => named("struct ", &inner),
            Some(Type::Enum(inner)) => named("enum ", &inner),
            Some(Type::Int(inner)) => named("", &inner),
            Some(Type::FuncProto(_)) => "fn".to_owned(),
            Some(_) => "?".to_owned(),
            None => "void".to_owned(),
        }
    }
}
