//! Where things are: the checkout, its target directory, and the cache that all checkouts share.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of this checkout.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`; the compile-time value would follow a binary that was moved elsewhere.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), Path::to_owned)
}

/// Cargo's target directory for this checkout.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // Relative to the directory that cargo was started in, which the root is for all our calls.
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cache for tools and kernels: `NETPROBE_CACHE`, else the user's cache directory.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("NETPROBE_CACHE") {
        return std::path::absolute(dir).context("resolve NETPROBE_CACHE");
    }
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => home()?.join(".cache"),
    };
    Ok(base.join("netprobe"))
}

/// The directory that tools built by `cargo xtask setup` are installed below.
pub(crate) fn tools() -> Result<PathBuf> {
    Ok(cache()?.join("tools"))
}

/// Cargo's home, where the sources of dependencies are unpacked.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => Ok(home()?.join(".cargo")),
    }
}

/// The cargo that started us, or the one on `PATH`.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn home() -> Result<PathBuf> {
    env::home_dir().context("no home directory: set HOME, or NETPROBE_CACHE and CARGO_HOME")
}
