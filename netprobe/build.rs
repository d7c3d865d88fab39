//! Links the unwinder of std's backtraces into the program, so that it needs nothing but libc where
//! it runs: std asks the linker for `libgcc_s`, which finds GCC's static twin under that name here.
//! A C compiler without the twin (LLVM's own, musl) links what it always does.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |part| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" || env::var("HOST") != env::var("TARGET") {
        return Ok(());
    }
    let Some(archive) = static_twin() else {
        return Ok(());
    };
    let folder = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(
        folder.join("libgcc_s.so"),
        format!("INPUT({})\n", archive.display()),
    )?;
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
