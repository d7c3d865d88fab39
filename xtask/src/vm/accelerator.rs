//! Chooses how QEMU runs a machine: with KVM where that really works, else by translation.
//!
//! `/dev/kvm` may exist and hang, so it is tried with a boot sector that ends QEMU at once. The
//! answer is kept until this machine is booted again. `NETPROBE_VM_ACCEL` (kvm or tcg) decides instead.

use std::env;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Real-mode code: `mov al, 0x15; out 0xf4, al; hlt; jmp -3`.
const CODE: [u8; 7] = [0xb0, 0x15, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];
/// What QEMU's exit device makes of the value that the code writes: twice that plus one.
const STATUS: i32 = 0x15 * 2 + 1;
/// A working KVM takes a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// How QEMU runs a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    /// The better one that works here.
    pub(super) fn of_this_machine() -> Result<Self> {
        if let Ok(name) = env::var("NETPROBE_VM_ACCEL") {
            return Self::named(&name).context("NETPROBE_VM_ACCEL is neither kvm nor tcg");
        }
        if OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return Ok(Self::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read boot id")?;
        let file = workspace::cache()?.join("accelerator");
        let known = fs::read_to_string(&file).unwrap_or_default();
        if let Some((id, name)) = known.split_once(' ')
            && id == boot.trim()
            && let Some(found) = Self::named(name)
        {
            return Ok(found);
        }
        let found = if kvm_works()? { Self::Kvm } else { Self::Tcg };
        fs::write(&file, format!("{} {}", boot.trim(), found.name()))
            .with_context(|| format!("write {}", file.display()))?;
        Ok(found)
    }

    /// Its options of QEMU. One thread translates, as only one processor is emulated.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // A processor without AVX takes a seventh less time: its wide registers are emulated in pieces.
            Self::Tcg => ["-accel", "tcg,thread=single", "-cpu", "Nehalem"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|accelerator| accelerator.name() == name)
    }
}

fn kvm_works() -> Result<bool> {
    let disk = tempfile::NamedTempFile::new().context("create a boot sector")?;
    fs::write(disk.path(), boot_sector()).context("write a boot sector")?;
    let mut qemu = probe(disk.path())
        .spawn()
        .context("start qemu; `cargo xtask setup` installs it")?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = qemu.try_wait().context("wait for qemu")? {
            return Ok(status.code() == Some(STATUS));
        }
        thread::sleep(Duration::from_millis(20));
    }
    if qemu.kill().is_err() {
        bail!("qemu hangs on /dev/kvm and cannot be killed; set NETPROBE_VM_ACCEL=tcg");
    }
    qemu.wait().context("wait for qemu")?;
    Ok(false)
}

fn probe(disk: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(Accelerator::Kvm.arguments())
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=ide", disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(&CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            assert_eq!(Accelerator::named(accelerator.name()), Some(accelerator));
        }
        assert_eq!(Accelerator::named("xen"), None);
    }

    #[test]
    fn boot_sector_is_marked_as_one() {
        assert_eq!(boot_sector()[510..], [0x55, 0xaa]);
    }
}
