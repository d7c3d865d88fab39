//! What is said at the end of frames without names and of stacks that are cut or lost: why, and what helps. Little of
//! that goes without a word, for the picture labels it.

use std::{collections::BTreeMap, sync::Arc};

use netprobe_common::samples::STACK_DEPTH;

use super::{
    nameless::{Nameless, Of, Weights},
    roots,
};
use crate::{kernel::privileges, render::text, report::Value, symbols::Missing};

/// A share above which it is explained.
const EXPLAIN_PERCENT: u64 = 20;

/// How user stacks were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copying {
    /// Copied, where frame pointers do not lead through all code.
    pub(super) is_on: bool,
    /// So many were not, for want of budget or of room in the ring.
    pub(super) not_copied: u64,
    /// Frames that the kernel takes of a stack that is not copied.
    pub(super) depth: usize,
}

/// What is amiss with a part of the stacks, and how large that part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    percent: u64,
    /// Whose, or why; the largest first.
    names: String,
}

impl Share {
    /// The sum of `weights`, by names as they are shown, in `all`.
    pub(super) fn of(weights: &BTreeMap<String, u64>, all: u64) -> Self {
        let names = largest(weights).into_iter();
        let names: Vec<&str> = names.map(|(name, _)| name.as_str()).collect();
        Self {
            percent: percent(weights.values().sum(), all),
            names: names.join(", "),
        }
    }
}

fn percent(weight: u64, all: u64) -> u64 {
    let percent = u128::from(weight) * 100 / u128::from(all.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// Why frames have no names.
pub(super) fn of_names(nameless: &Nameless) -> Vec<String> {
    let lacking = privileges::lacking(&privileges::READS_FILES);
    names_lines(nameless.larger(), lacking.as_deref())
}

/// The same for one who is `lacking` these capabilities.
fn names_lines((of, nameless, all): (Of, &Weights, u64), lacking: Option<&str>) -> Vec<String> {
    let total = percent(nameless.values().sum(), all);
    if total <= EXPLAIN_PERCENT {
        return Vec::new();
    }
    let mut lines = vec![match of {
        Of::Frames => format!("{total} % of the user code has no name, each stack counting alike:"),
        Of::Innermost => format!("{total} % of the user stacks have code without a name on top:"),
    }];
    for ((missing, module), weight) in largest(nameless) {
        let (percent, module) = (percent(*weight, all), shown(module));
        if percent == 0 {
            continue;
        }
        let denied = lacking.and_then(|lacking| Some((denied(*missing)?, lacking)));
        let advice = match denied {
            Some((what, lacking)) => format!("{what}: needs {lacking}"),
            None => missing.advice().to_owned(),
        };
        lines.push(format!("  {percent} % {module}: {advice}"));
    }
    lines
}

/// What may not be read of a process of another user, if a name is missing for that.
fn denied(missing: Missing) -> Option<&'static str> {
    match missing {
        Missing::Unreadable => Some("the file cannot be read"),
        Missing::Denied => Some("netprobe may not see what the process has mapped"),
        Missing::JitDenied => Some("made at run time, and /tmp/perf-PID.map may not be read"),
        _ => None,
    }
}

/// Where stacks were cut: in what their outermost known function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CutIn {
    /// Code that was made at run time.
    Jit,
    /// A C library without names and without unwind tables.
    Musl,
    /// A file that could not be read.
    Unread,
    /// Anything else.
    Other,
}

impl CutIn {
    /// That of a stack by its outermost function, which may lack its name.
    pub(super) fn of(function: Option<&str>, missing: Option<Missing>) -> Self {
        match function {
            Some(_) if missing == Some(Missing::Unreadable) => Self::Unread,
            Some(name) if name == "[jit]" || name.ends_with("_[j]") => Self::Jit,
            Some(name) if roots::is_musl(name) => Self::Musl,
            Some(_) | None => Self::Other,
        }
    }
}

/// Where most of the cut stacks end, if most do.
pub(super) fn most_cut(ends: &BTreeMap<CutIn, u64>) -> CutIn {
    let all: u64 = ends.values().sum();
    let most = ends.iter().find(|(_, weight)| **weight > all / 2);
    most.map_or(CutIn::Other, |(end, _)| *end)
}

/// Why stacks are cut, most of them there.
pub(super) fn of_cut(cut: &Share, most: CutIn, copying: Copying) -> Option<String> {
    if cut.percent <= EXPLAIN_PERCENT {
        return None;
    }
    let why = match most {
        CutIn::Jit => String::from(
            "of code made at run time, which keeps no frame pointers; they are whole with java -XX:+PreserveFramePointer, and \
             with python -X perf if Python was built with -fno-omit-frame-pointer (without -X perf they need none)",
        ),
        CutIn::Musl => String::from(
            "in musl, which has neither names nor unwind tables: of threads nothing is missing but their start; where it calls \
             back, as qsort does, the caller is",
        ),
        CutIn::Unread => why_unread(privileges::lacking(&privileges::READS_FILES).as_deref()),
        CutIn::Other => why_cut(copying),
    };
    let not_copied = match copying.not_copied {
        0 => String::new(),
        count => format!(
            "; {count} stacks were not copied for want of budget or room, and followed by frame pointers: fewer tasks \
             (--pid, --cgroup) leave more for each"
        ),
    };
    Some(format!(
        "{} % of the user stacks are [truncated] ({}): {why}{not_copied}",
        cut.percent, cut.names
    ))
}

fn why_unread(lacking: Option<&str>) -> String {
    match lacking {
        Some(lacking) => format!("in files that cannot be read: needs {lacking}"),
        None => String::from("in files that cannot be read: gone, or of another user namespace"),
    }
}

fn why_cut(copying: Copying) -> String {
    let depth = match copying.depth {
        STACK_DEPTH => format!("{STACK_DEPTH} frames"),
        depth => format!("{depth} frames (kernel.perf_event_max_stack; {STACK_DEPTH} are of use)"),
    };
    if copying.is_on {
        format!(
            "deeper than what is copied of them or than {depth}, of processes that had ended, of signal handlers or \
             coroutines on a stack of their own, or of code without unwind tables; built with -fno-omit-frame-pointer, \
             libraries too, they are whole with --unwind frame-pointers"
        )
    } else {
        format!(
            "of code that keeps no frame pointers, or deeper than {depth}; --unwind auto follows unwind tables"
        )
    }
}

/// Why stacks are not known at all.
pub(super) fn of_lost(lost: &Share) -> Option<String> {
    (lost.percent > EXPLAIN_PERCENT).then(|| {
        format!(
            "{} % of the user stacks are lost ({}): too many tasks for the room that there is for their stacks; choose \
             fewer (--pid, --cgroup, --min-block)",
            lost.percent, lost.names
        )
    })
}

/// Waits without a stack, because netprobe was to stay cheap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// How many.
    pub(super) waits: u64,
    /// How long, in nanoseconds.
    pub(super) ns: u64,
    /// How long all waits were.
    pub(super) all_ns: u64,
}

/// What is not known of waits without a stack; for a graph that shows only those within a function, that they may have
/// been there.
pub(super) fn of_left_out(left_out: LeftOut, is_within: bool, limit: f64) -> Option<String> {
    let percent = percent(left_out.ns, left_out.all_ns);
    let limit = limit * 100.0;
    if is_within && left_out.waits > 0 {
        return Some(format!(
            "{} waits are not drawn that may belong here: their stacks were left out to keep to --max-overhead {limit} %",
            left_out.waits
        ));
    }
    (percent > EXPLAIN_PERCENT).then(|| {
        format!(
            "{percent} % of the time has no stack, to keep to --max-overhead {limit} %: that of waits that are mostly short; \
             choose fewer tasks (--pid, --comm), leave out short waits (--min-block 1ms), or allow more"
        )
    })
}

/// The largest few.
fn largest<K: Clone + Ord>(weights: &BTreeMap<K, u64>) -> Vec<(&K, &u64)> {
    let mut sorted: Vec<(&K, &u64)> = weights.iter().collect();
    sorted.sort_by_key(|(_, weight)| std::cmp::Reverse(**weight));
    sorted.truncate(5);
    sorted
}

/// A name that anybody chose, for a terminal.
fn shown(name: &str) -> String {
    let mut shown = String::new();
    text::push(&mut shown, &Value::Text(Arc::from(name)));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(weights: &[(&str, u64)], all: u64) -> Share {
        let weights = weights.iter();
        let weights = weights.map(|(name, weight)| ((*name).to_owned(), *weight));
        Share::of(&weights.collect(), all)
    }

    #[test]
    fn waits_without_a_stack_are_told_where_they_matter() {
        let some = LeftOut {
            waits: 7,
            ns: 30,
            all_ns: 100,
        };
        let told = of_left_out(some, false, 0.01).unwrap();
        assert!(told.starts_with("30 % of the time has no stack, to keep to --max-overhead 1 %"));
        let few = LeftOut { ns: 10, ..some };
        assert_eq!(of_left_out(few, false, 0.01), None);
        assert!(
            of_left_out(few, true, 0.01)
                .unwrap()
                .starts_with("7 waits are not drawn")
        );
        assert_eq!(of_left_out(LeftOut::default(), true, 0.01), None);
    }

    #[test]
    fn cut_stacks_are_explained_by_how_they_were_followed() {
        let cut = share(&[("nginx", 10), ("redis", 30)], 100);
        let mut copying = Copying {
            is_on: true,
            not_copied: 0,
            depth: STACK_DEPTH,
        };
        let said = of_cut(&cut, CutIn::Other, copying).unwrap();
        assert!(said.starts_with("40 % of the user stacks are [truncated] (redis, nginx): deeper"));
        assert!(!said.contains("budget"), "{said}");
        copying.not_copied = 7;
        let said = of_cut(&cut, CutIn::Other, copying).unwrap();
        assert!(
            said.contains("7 stacks were not copied for want of budget"),
            "{said}"
        );
        copying = Copying {
            is_on: false,
            not_copied: 0,
            depth: STACK_DEPTH,
        };
        let said = of_cut(&cut, CutIn::Other, copying).unwrap();
        assert!(
            !said.contains("copied") && !said.contains("tables;"),
            "{said}"
        );
        assert!(said.contains("deeper than 127 frames; "), "{said}");
        copying.depth = 16;
        let said = of_cut(&cut, CutIn::Other, copying).unwrap();
        assert!(
            said.contains("deeper than 16 frames (kernel.perf_event_max_stack;"),
            "{said}"
        );
        copying.is_on = true;
        let said = of_cut(&cut, CutIn::Other, copying).unwrap();
        assert!(
            said.contains("coroutines on a stack of their own"),
            "{said}"
        );
        copying.is_on = false;
        assert_eq!(
            of_cut(&share(&[("redis", 20)], 100), CutIn::Other, copying),
            None
        );
    }

    #[test]
    fn stacks_that_end_in_code_made_at_run_time_want_its_frame_pointers() {
        let copying = Copying {
            is_on: true,
            not_copied: 0,
            depth: STACK_DEPTH,
        };
        let cut = share(&[("java", 90)], 100);
        let said = |outermost: &[(&str, u64)]| {
            let mut ends = BTreeMap::new();
            for (name, weight) in outermost {
                *ends.entry(CutIn::of(Some(name), None)).or_default() += *weight;
            }
            of_cut(&cut, most_cut(&ends), copying).unwrap()
        };
        let java = said(&[("T.main_[j]", 6), ("[jit]", 3), ("JavaMain", 1)]);
        assert!(java.contains("-XX:+PreserveFramePointer"), "{java}");
        assert!(!java.contains("--unwind"), "{java}");
        let musl = said(&[("[libc.so]", 9), ("[libc.so.6]", 8)]);
        assert!(
            musl.contains("musl") && !musl.contains("built with"),
            "{musl}"
        );
        let others = said(&[("T.main_[j]", 5), ("main", 5)]);
        assert!(others.contains("deeper than what is copied"), "{others}");
    }

    #[test]
    fn names_that_are_shown_are_not_escaped_again() {
        let cut = share(&[(r"a\u{1b}", 30)], 100);
        assert_eq!(cut.names, r"a\u{1b}");
    }

    #[test]
    fn names_that_are_hardly_missing_are_not_listed() {
        let nameless = [
            ((Missing::Stripped, "[big]".to_owned()), 500),
            ((Missing::Stripped, "[small]".to_owned()), 1),
        ];
        let lines = names_lines((Of::Frames, &nameless.into(), 1000), None);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("[big]"), "{lines:?}");
    }

    #[test]
    fn who_lacks_a_capability_is_told_which() {
        let nameless = [((Missing::Unreadable, "[t]".to_owned()), 56)].into();
        let lines = names_lines((Of::Innermost, &nameless, 100), Some("CAP_SYS_PTRACE"));
        assert_eq!(
            lines[1],
            "  56 % [t]: the file cannot be read: needs CAP_SYS_PTRACE"
        );
        let lines = names_lines((Of::Innermost, &nameless, 100), None);
        assert!(lines[1].contains("gone"), "{lines:?}");
        assert!(!lines[1].contains("root"), "{lines:?}");
        for missing in [Missing::Denied, Missing::JitDenied] {
            let nameless = [((missing, "[t]".to_owned()), 56)].into();
            let lines = names_lines((Of::Innermost, &nameless, 100), Some("CAP_SYS_PTRACE"));
            assert!(lines[1].ends_with(": needs CAP_SYS_PTRACE"), "{lines:?}");
        }
        let end = CutIn::of(Some("[t]"), Some(Missing::Unreadable));
        assert_eq!(end, CutIn::Unread);
        let why = why_unread(Some("CAP_SYS_PTRACE"));
        assert_eq!(why, "in files that cannot be read: needs CAP_SYS_PTRACE");
    }

    #[test]
    fn lost_stacks_are_explained_by_why() {
        let lost = share(&[("gave way to newer copies", 30)], 100);
        let said = of_lost(&lost).unwrap();
        assert!(said.contains("30 %") && said.contains("gave way"), "{said}");
        assert_eq!(of_lost(&share(&[], 0)), None);
    }
}
