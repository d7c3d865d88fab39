//! Names to look for, with `*` and `?` as in a shell.

use std::fmt;

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
