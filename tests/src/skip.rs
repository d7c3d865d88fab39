//! Tests that cannot run here say so: `SKIP <why>`.
//!
//! With `NETPROBE_REQUIRE_LIVE=1` the only excuse is that `netprobe check` reports the hook missing.

use std::env;

use crate::program::check;

/// Whether nothing may be skipped that this kernel could do.
fn is_strict() -> bool {
    env::var_os("NETPROBE_REQUIRE_LIVE").is_some_and(|value| value == "1")
}

/// Whether this is a machine that only the test has, as those of the matrix.
pub fn is_disposable() -> bool {
    env::var_os("NETPROBE_DISPOSABLE").is_some_and(|value| value == "1")
}

/// Prints `SKIP <why>` where the harness keeps it with the name of the test; `--show-output`
/// shows it.
#[expect(
    clippy::print_stdout,
    reason = "the harness keeps only what is printed this way"
)]
pub fn skip(why: &str) {
    println!("SKIP {why}");
}

/// Skips for a reason that lies in the surroundings, not in the kernel's hooks.
#[track_caller]
pub fn skip_unless_strict(why: &str) {
    assert!(!is_strict(), "NETPROBE_REQUIRE_LIVE forbids to skip: {why}");
    skip(why);
}

/// Whether tests can load programs at all.
#[track_caller]
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip_unless_strict("not root");
    }
    is_root
}

/// Whether every hook of `probe` that sees one of `sights` is there; says what is missing if not.
///
/// No sights stand for the probe's required hooks.
#[track_caller]
pub fn has_hooks(probe: &str, sights: &[&str]) -> bool {
    if !is_root() {
        return false;
    }
    let found = check().probe(probe);
    for hook in &found.hooks {
        let is_wanted = if sights.is_empty() {
            hook.required
        } else {
            sights.iter().any(|sight| hook.sees.contains(sight))
        };
        if is_wanted && hook.via.is_none() {
            let why = hook.why.as_deref().unwrap_or("no reason given");
            skip(&format!("{probe}, {}: {why}", hook.sees));
            return false;
        }
    }
    for sight in sights {
        let is_known = found.hooks.iter().any(|hook| hook.sees.contains(sight));
        assert!(is_known, "{probe} has no hook that sees {sight:?}");
    }
    true
}
