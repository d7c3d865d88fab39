//! Packs the eBPF object: a run needs a few of its programs, once, and as it is all of it would stay in memory.
//!
//! And links the unwinder of std's backtraces into the program, so that it needs nothing but libc where
//! it runs: std asks the linker for `libgcc_s`, which finds GCC's static twin under that name here.
//! A C compiler without the twin (LLVM's own, musl) links what it always does.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use flate2::{Compression, write::ZlibEncoder};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let folder = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    pack(&folder)?;
    link_unwinder(&folder)
}

/// Packs the object for the architecture, as committed in `prebuilt/`.
fn pack(folder: &Path) -> io::Result<()> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").map_err(io::Error::other)?;
    let path = format!("prebuilt/netprobe.{architecture}.bpf.o");
    println!("cargo::rerun-if-changed={path}");
    let object = fs::read(&path).map_err(|error| io::Error::other(format!("{path}: {error}")))?;
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&object)?;
    fs::write(folder.join("netprobe.bpf.o.z"), packed.finish()?)
}

fn link_unwinder(folder: &Path) -> io::Result<()> {
    let target = |part| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" || env::var("HOST") != env::var("TARGET") {
        return Ok(());
    }
    let Some(archive) = static_twin() else {
        return Ok(());
    };
    let script = format!("INPUT({})\n", archive.display());
    fs::write(folder.join("libgcc_s.so"), script)?;
    println!("cargo::rustc-link-search=native={}", folder.display());
    Ok(())
}

/// `libgcc_eh.a` of the C compiler that links, which prints the bare name of a file it does not have.
fn static_twin() -> Option<PathBuf> {
    let answer = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim_end());
    Path::is_absolute(&path).then_some(path)
}
