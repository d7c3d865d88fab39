//! Where the threads of a process are in the kernel: `/proc/PID/task/TID/stack`, read once.

use std::fs;

use super::stat;

/// Most threads of a process that are looked at.
const MOST: usize = 256;

/// A thread at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its name.
    pub comm: String,
    /// Functions of the kernel that it is in, innermost first; none where it runs, or may not be looked at.
    pub functions: Vec<String>,
    /// What it does, as in ps(1).
    pub state: Option<char>,
}

/// The threads of a process.
pub fn of(pid: u32) -> Vec<Thread> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter();
    let threads = threads.flatten().flatten().take(MOST);
    let threads = threads.filter_map(|thread| {
        let path = thread.path();
        let comm = fs::read(path.join("comm")).ok()?;
        let comm = comm.strip_suffix(b"\n").unwrap_or(&comm);
        let stack = fs::read_to_string(path.join("stack")).unwrap_or_default();
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        Some(Thread {
            comm: String::from_utf8_lossy(comm).into_owned(),
            functions: functions(&stack),
            state: stat::state(&stat),
        })
    });
    threads.collect()
}

/// The functions of lines such as `[<0>] do_nanosleep+0x8f/0x1b0`.
fn functions(stack: &str) -> Vec<String> {
    let lines = stack.lines().filter_map(|line| {
        let (_, place) = line.split_once("] ")?;
        let name = place.split('+').next()?.trim();
        (!name.is_empty()).then(|| name.to_owned())
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_without_their_offsets() {
        let text =
            "[<0>] hrtimer_nanosleep+0xd0/0x1b0\n[<0>] nf_x+0x1/0x2 [nf_tables]\nx\n[<0>] \n";
        assert_eq!(functions(text), ["hrtimer_nanosleep", "nf_x"]);
        assert_eq!(functions(""), [""; 0]);
    }

    #[test]
    fn our_own_thread_is_among_them() {
        let threads = of(std::process::id());
        assert!(
            threads.iter().any(|thread| thread.state == Some('R')),
            "{threads:?}"
        );
    }
}
