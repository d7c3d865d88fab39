//! Warns of a filter that names what nothing here has: `0 events` of a misspelt interface reads as if all were well.
//! It is no error, as what is named may come.

use std::{convert::Infallible, fs, path::PathBuf};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use crate::{
    filter::{Expression, Pattern, Predicate, Test},
    observe::{interfaces, namespaces},
};

/// Lines of a filter that names much; the rest is counted.
const MOST_LINES: usize = 5;

/// Warns of every test of `expression` that nothing on this machine can meet now.
pub(super) fn warn(expression: &Expression) {
    for line in lines(expression) {
        log::warn!("{line}");
    }
}

fn lines(expression: &Expression) -> Vec<String> {
    let mut lines = Vec::new();
    let mut more: usize = 0;
    let Ok(()) = expression.each(&mut |test: &Test| {
        if let Some(what) = Some(test).filter(|test| !test.is_negated).and_then(missing) {
            if lines.len() == MOST_LINES {
                more += 1;
                return Ok(());
            }
            let is_of_namespaces = matches!(
                test.predicate,
                Predicate::Iface(_) | Predicate::Ifindex(_) | Predicate::Netns(_)
            );
            let limit = if is_of_namespaces && namespaces::are_hidden() {
                ", as far as netprobe may look"
            } else {
                ""
            };
            lines.push(format!("{}: no {what} now{limit}", test.origin));
        }
        Ok::<(), Infallible>(())
    });
    if more > 0 {
        lines.push(format!("{more} more of what is asked for is not there now"));
    }
    lines
}

/// What is not there.
fn missing(test: &Test) -> Option<&'static str> {
    let (is_there, what) = match &test.predicate {
        Predicate::Pid(pid) => (is_process(*pid), "process has this id"),
        Predicate::Comm(name) => (is_task(name), "process has this name"),
        Predicate::Iface(name) => (
            is_interface(|_, own| name.matches(own.as_bytes())),
            "interface has this name",
        ),
        Predicate::Ifindex(index) => (
            is_interface(|own, _| own == *index),
            "interface has this index",
        ),
        Predicate::Netns(inode) => (
            namespaces::find(*inode).is_ok(),
            "network namespace has this number",
        ),
        _ => return None,
    };
    (!is_there).then_some(what)
}

fn is_process(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // One that we may not send signals to is there.
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Whether a task has the name, also one beside the first of its process.
fn is_task(name: &Pattern) -> bool {
    let numbers = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
            .map(|entry| entry.path())
    };
    let has_name = |task: PathBuf| {
        let comm = fs::read(task.join("comm")).unwrap_or_default();
        name.matches(comm.strip_suffix(b"\n").unwrap_or(&comm))
    };
    let processes = || numbers(PathBuf::from("/proc"));
    processes().any(has_name)
        || processes().any(|process| numbers(process.join("task")).any(has_name))
}

/// Whether an interface of any namespace is meant; true where one cannot be asked.
fn is_interface(is_meant: impl Fn(u32, &str) -> bool + Sync) -> bool {
    let ask = || {
        let namespaces = namespaces::all().ok()?;
        let asked = namespaces::in_each(&namespaces, |_| interfaces::names()).ok()?;
        let mut all = asked.into_iter().map(Result::flatten);
        Some(all.any(|names| {
            names.map_or(true, |names| {
                names.iter().any(|(index, name)| is_meant(*index, name))
            })
        }))
    };
    ask().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Origin;

    fn what(predicate: Predicate) -> Option<&'static str> {
        let test = Expression::test(predicate, Origin::option(String::new()));
        let Expression::Test(test) = test else {
            return None;
        };
        missing(&test)
    }

    #[test]
    fn of_many_that_are_not_there_the_first_are_named() {
        let tests = |count: u32| {
            let test = |pid| {
                Expression::test(
                    Predicate::Pid((1 << 30) + pid),
                    Origin::option(format!("--pid {pid}")),
                )
            };
            lines(&Expression::Or((0..count).map(test).collect()))
        };
        assert_eq!(tests(5).len(), 5);
        let many = tests(20_000);
        assert_eq!(many.len(), 6);
        assert_eq!(many[0], "--pid 0: no process has this id now");
        assert_eq!(many[5], "19995 more of what is asked for is not there now");
    }

    #[test]
    fn what_is_not_there_is_told_from_what_is() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let pattern = |text: &str| Pattern::of_task(text.trim_end());
        for there in [
            Predicate::Pid(std::process::id()),
            Predicate::Comm(pattern(&own)),
            Predicate::Iface(Pattern::new("l?")),
            Predicate::Ifindex(1),
        ] {
            assert_eq!(what(there.clone()), None, "{there:?}");
        }
        for absent in [
            Predicate::Pid(1 << 30),
            Predicate::Comm(pattern("no such task")),
            Predicate::Netns(1),
        ] {
            assert!(what(absent.clone()).is_some(), "{absent:?}");
        }
        // Without privileges other namespaces cannot be asked.
        if rustix::process::geteuid().is_root() {
            assert!(what(Predicate::Iface(Pattern::new("nosuch*"))).is_some());
        }
    }
}
