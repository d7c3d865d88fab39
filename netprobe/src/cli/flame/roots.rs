//! Where threads begin: whether a stack leads there, and is whole, shows in its outermost functions.

use std::sync::Arc;

/// Functions of C libraries and of Go that nothing of a program calls, and nobody else names a function like.
const STARTS: [&str; 12] = [
    "_start",
    "_dl_start_user",
    "__libc_start_main",
    "__libc_start_main_impl",
    "__libc_start_call_main",
    "libc_start_main_stage2",
    "clone3",
    "__clone",
    "__clone3",
    "runtime.goexit",
    "runtime.mstart",
    "runtime.rt0_go",
];

/// The same, but programs have functions of these names too.
const USUAL_NAMES: [&str; 3] = ["main", "start_thread", "clone"];

/// How the callers were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// By unwind tables, which lead to the start and say so; where they do not, code without tables was in the way.
    Tables,
    /// By frame pointers, which the start of a thread may not keep.
    FramePointers,
}

/// Whether nothing calls this function, whatever the stack says.
pub(super) fn is_start(function: &str) -> bool {
    STARTS.contains(&function.strip_suffix(".abi0").unwrap_or(function))
}

/// Whether it may be what calls `main`, or began the thread.
pub(super) fn may_begin(function: &str) -> bool {
    is_start(function) || USUAL_NAMES.contains(&function) || is_c_library(function)
}

/// A place in a C library without symbols.
fn is_c_library(function: &str) -> bool {
    let beginnings = ["[libc.so", "[libc-"];
    is_musl(function)
        || beginnings
            .iter()
            .any(|beginning| function.starts_with(beginning))
}

/// The same in musl's.
pub(super) fn is_musl(function: &str) -> bool {
    let beginnings = ["[libc.so]", "[ld-musl-", "[libc.musl-"];
    beginnings
        .iter()
        .any(|beginning| function.starts_with(beginning))
}

/// Whether a stack ends where its thread began.
pub(super) fn is_whole(innermost_first: &[Arc<str>], by: By) -> bool {
    let Some((last, inner)) = innermost_first.split_last() else {
        return false;
    };
    let calls_main = is_c_library(last) && inner.last().is_some_and(|name| &**name == "main");
    is_start(last)
        || calls_main
        || by == By::FramePointers
            && (USUAL_NAMES.contains(&&**last) || is_c_library(last) && !inner.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_whole(outermost_first: &[&str], by: By) -> bool {
        let frames: Vec<Arc<str>> = outermost_first
            .iter()
            .rev()
            .map(|name| Arc::from(*name))
            .collect();
        super::is_whole(&frames, by)
    }

    #[test]
    fn a_root_counts_only_where_the_stack_ends() {
        for by in [By::Tables, By::FramePointers] {
            assert!(is_whole(&["_start", "main", "leaf"], by));
            assert!(is_whole(&["[libc.so.6]", "main", "leaf"], by));
            assert!(is_whole(&["[ld-musl-x86_64.so.1]", "main", "leaf"], by));
            assert!(!is_whole(&["handle_request", "clone", "copy"], by));
            assert!(!is_whole(&["serve", "start_thread", "copy"], by));
            assert!(!is_whole(&["[libc.so.6]"], by));
            assert!(!is_whole(&[], by));
        }
    }

    #[test]
    fn tables_lead_beyond_main_or_are_missing() {
        for frames in [&["main", "leaf"][..], &["[libc.so.6]", "compare"]] {
            assert!(!is_whole(frames, By::Tables), "{frames:?}");
            assert!(is_whole(frames, By::FramePointers), "{frames:?}");
        }
    }

    #[test]
    fn goroutines_begin_in_goexit_whatever_go_calls_it() {
        for name in [
            "runtime.goexit",
            "runtime.goexit.abi0",
            "runtime.mstart.abi0",
        ] {
            assert!(is_whole(&[name, "main.main"], By::Tables), "{name}");
        }
        assert!(!is_whole(&["main.main"], By::FramePointers));
    }
}
