//! Names to look for, with `*` and `?` as in a shell.

use std::fmt;

/// Bytes of a task's name (`TASK_COMM_LEN`, less the end).
const TASK_NAME_BYTES: usize = 15;

/// A name, or a pattern of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
}

impl Pattern {
    /// The pattern that `text` writes.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    /// The same of a task's name, of which the kernel keeps the first 15 bytes: what is longer means those.
    pub fn of_task(text: &str) -> Self {
        let kept = text.floor_char_boundary(TASK_NAME_BYTES);
        let (kept, rest) = text.split_at(kept);
        if rest.is_empty() || kept.contains(['*', '?']) {
            return Self::new(text);
        }
        // Half a letter is left of what the kernel cuts within one.
        let half = if kept.len() < TASK_NAME_BYTES {
            "*"
        } else {
            ""
        };
        Self::new(format!("{kept}{half}"))
    }

    /// The name, if it is only one.
    pub fn exact(&self) -> Option<&str> {
        (!self.text.contains(['*', '?'])).then_some(&self.text)
    }

    /// Whether `name` is meant.
    pub fn matches(&self, name: &[u8]) -> bool {
        let pattern = self.text.as_bytes();
        let (mut p, mut n) = (0, 0);
        // Where to go on when it turns out that the last star stands for more.
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p + 1, n));
                    p += 1;
                }
                Some(letter) if *letter == b'?' || *letter == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => {
                    let Some((after, from)) = star else {
                        return false;
                    };
                    star = Some((after, from + 1));
                    (p, n) = (after, from + 1);
                }
            }
        }
        pattern[p..].iter().all(|letter| *letter == b'*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tasks_are_cut_where_the_kernel_cuts_them() {
        let cases = [
            ("systemd-journald", "systemd-journal", true),
            ("systemd-journald*", "systemd-journal", true),
            ("systemd-journald", "systemd-network", false),
            ("systemd-j*d", "systemd-journal", false),
            ("systemd-*", "systemd-journal", true),
            ("nginx", "nginx", true),
        ];
        for (pattern, name, expected) in cases {
            let pattern = Pattern::of_task(pattern);
            assert_eq!(pattern.matches(name.as_bytes()), expected, "{pattern}");
        }
        let cut = Pattern::of_task("systemd-journald");
        assert_eq!(cut.exact(), Some("systemd-journal"));
        assert_eq!(Pattern::of_task("aaaaaaaaaaaaaa\u{e9}x").exact(), None);
    }

    #[test]
    fn stars_stand_for_anything_and_marks_for_one() {
        let cases = [
            ("nginx", "nginx", true),
            ("nginx", "nginx2", false),
            ("ng*", "nginx", true),
            ("*x", "nginx", true),
            ("n*i*x", "nginx", true),
            ("n?inx", "nginx", true),
            ("n?nx", "nginx", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b", "aXbXc", false),
            ("*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaa", false),
        ];
        for (pattern, name, expected) in cases {
            let pattern = Pattern::new(pattern);
            assert_eq!(
                pattern.matches(name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
