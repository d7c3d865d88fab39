//! Resolves every field that the programs read against the running kernel's BTF.

use std::cell::OnceCell;

use netprobe_common::offsets::{Field, Offsets, Source};

use super::btf::KernelBtf;
use crate::observe::cgroups;

/// The module whose types are not in the kernel's own BTF everywhere.
const CONNTRACK: &str = "nf_conntrack";

/// The types that [`resolve`] asks for.
pub fn names() -> impl Iterator<Item = &'static str> {
    let root = |path: &'static str| path.split_once('.').map_or(path, |(root, _)| root);
    Field::ALL
        .iter()
        .flat_map(move |field| match field.source() {
            Source::Member(path) | Source::Conntrack(path) | Source::BitMask(path) => {
                [Some(root(path)), None]
            }
            Source::Nested(outer, inner) => [Some(root(outer)), Some(root(inner))],
            Source::Argument(tracepoint, _) => [Some(tracepoint), None],
        })
        .flatten()
}

/// Finds every field; what this kernel lacks stays absent.
pub fn resolve(btf: &KernelBtf) -> Offsets {
    let mut offsets = Offsets::ABSENT;
    let conntrack = OnceCell::new();
    for field in Field::ALL {
        let found = match field.source() {
            Source::Member(path) => byte_offset(btf, path),
            Source::Conntrack(path) => byte_offset(btf, path).or_else(|| {
                let module = conntrack.get_or_init(|| btf.module(CONNTRACK));
                byte_offset(module.as_ref()?, path)
            }),
            Source::BitMask(path) => bit_mask(btf, path),
            Source::Nested(outer, inner) => nested(btf, outer, inner),
            Source::Argument(tracepoint, wanted) => btf
                .tracepoint(tracepoint)
                .and_then(|types| argument(&types, wanted)),
        };
        if let Some(offset) = found {
            offsets.set(*field, offset);
        }
    }
    offsets
}

/// Whether programs can read the cgroup of every socket.
pub fn has_socket_cgroups(offsets: &Offsets) -> bool {
    let has = |field| offsets.get(field).is_some();
    let has_cgroup = has(Field::SkCgroup) || (has(Field::SkCgroupVal) && !cgroups::have_classes());
    has_cgroup && has(Field::CgroupKn) && has(Field::KernfsNodeId)
}

fn bit_mask(btf: &KernelBtf, path: &str) -> Option<u16> {
    let member = btf.member(path)?;
    let mask = (1_u32.checked_shl(member.bit_size?)? - 1) << (member.bit_offset % 8);
    u8::try_from(mask).ok().map(u16::from)
}

fn nested(btf: &KernelBtf, outer: &str, inner: &str) -> Option<u16> {
    byte_offset(btf, outer)?.checked_add(byte_offset(btf, inner)?)
}

fn byte_offset(btf: &KernelBtf, path: &str) -> Option<u16> {
    u16::try_from(btf.member(path)?.bit_offset / 8).ok()
}

/// The position of the argument whose type is `wanted`, or a pointer to it.
fn argument(types: &[String], wanted: &str) -> Option<u16> {
    let position = types
        .iter()
        .position(|ty| ty.strip_suffix(" *").unwrap_or(ty) == wanted)?;
    u16::try_from(position).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{btf, btf_index};

    #[test]
    fn fields_of_every_kernel_are_found_in_this_one() {
        let Ok(image) = btf::Image::read() else {
            println!("SKIP this kernel has no BTF");
            return;
        };
        let names = names().map(str::to_owned).collect();
        let index = btf_index::find(image.bytes(), &names).unwrap();
        let offsets = resolve(&KernelBtf::new(&image, index).unwrap());
        for field in Field::ALL {
            // Kernels from 6.10 on keep it per CPU; the cgroup is in one of two; 5.10 has no reasons, and few give errors;
            // how many are in TIME_WAIT is in one of two, and elsewhere, as the table is, from 5.18 to 6.0.
            let may_lack = matches!(
                field,
                Field::SkbTcpTwIsn
                    | Field::SkCgroup
                    | Field::SkCgroupVal
                    | Field::NetHashinfo
                    | Field::NetMaxTimeWait
                    | Field::NetTimeWaitRefs
                    | Field::NetTimeWaitCount
                    | Field::TaskState
                    | Field::TaskStateLong
                    | Field::ArgDropReason
                    | Field::ArgDropSock
                    | Field::ArgRetransmitErr
                    | Field::ArgResetReason
            );
            assert!(
                may_lack || offsets.get(*field).is_some(),
                "{:?}",
                field.source()
            );
        }
    }
}
