//! Drop reasons, which each kernel numbers anew: looked up when the kernel is known.

use super::{error::nearest, pattern::Pattern};

/// The reasons of the running kernel.
pub trait KnownReasons {
    /// Every number with its name.
    fn all(&self) -> Vec<(u32, String)>;
    /// What they are the reasons of: `drop` or `reset`.
    fn of(&self) -> &'static str;
    /// What the kernel puts before their names.
    fn prefix(&self) -> &'static str;
}

/// A set of reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// As they were written.
    wanted: Vec<String>,
    /// Number and name, once they are looked up.
    found: Option<Vec<(u32, String)>>,
}

impl Reasons {
    /// The reason that somebody calls `name`, or has this number.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            wanted: vec![name.into()],
            found: None,
        }
    }

    /// Both.
    #[must_use]
    pub(super) fn union(&self, other: &Self) -> Self {
        Self {
            wanted: [&self.wanted[..], &other.wanted].concat(),
            found: self.found.as_ref().zip(other.found.as_ref()).map(|(a, b)| {
                let mut all = [&a[..], b].concat();
                all.sort();
                all.dedup();
                all
            }),
        }
    }

    /// The numbers, once they are looked up.
    pub(super) fn codes(&self) -> Option<Vec<u32>> {
        let found = self.found.as_ref()?;
        Some(found.iter().map(|(code, _)| *code).collect())
    }

    /// The names, once they are looked up.
    pub(super) fn found(&self) -> &[(u32, String)] {
        self.found.as_deref().unwrap_or_default()
    }

    /// Looks the numbers up.
    pub fn resolve(&mut self, known: &dyn KnownReasons) -> Result<(), String> {
        let all = known.all();
        if all.is_empty() {
            return Err(format!("this kernel gives no {} reasons", known.of()));
        }
        let mut found = Vec::new();
        for wanted in &self.wanted {
            let before = found.len();
            let number = wanted.parse().ok();
            let name = wanted.to_uppercase().replace('-', "_");
            let name = name.strip_prefix(known.prefix()).unwrap_or(&name);
            let pattern = Pattern::new(name);
            let is_meant = |code: u32, known: &str| {
                Some(code) == number || pattern.matches(known.to_uppercase().as_bytes())
            };
            found.extend(
                all.iter()
                    .filter(|(code, known)| is_meant(*code, known))
                    .cloned(),
            );
            if found.len() == before {
                return Err(unknown(wanted, name, known.of(), &all));
            }
        }
        found.sort();
        found.dedup();
        self.found = Some(found);
        Ok(())
    }
}

fn unknown(wanted: &str, name: &str, of: &str, all: &[(u32, String)]) -> String {
    let names = || all.iter().map(|(_, known)| known.as_str());
    let mut near = nearest(name, names());
    if near.is_empty() && name.len() > 2 {
        near = names()
            .filter(|known| known.to_uppercase().contains(name))
            .collect();
    }
    near.truncate(5);
    if near.is_empty() {
        return format!("this kernel knows no {of} reason `{wanted}`");
    }
    format!(
        "this kernel knows no {of} reason `{wanted}`; near it are {}",
        near.join(", ")
    )
}

/// What the tests know.
#[cfg(test)]
pub(super) struct Sample;

#[cfg(test)]
impl KnownReasons for Sample {
    fn all(&self) -> Vec<(u32, String)> {
        [
            (2, "NOT_SPECIFIED"),
            (3, "NO_SOCKET"),
            (5, "TCP_CSUM"),
            (6, "NETFILTER_DROP"),
        ]
        .map(|(code, name)| (code, name.to_owned()))
        .into()
    }

    fn of(&self) -> &'static str {
        "drop"
    }

    fn prefix(&self) -> &'static str {
        "SKB_DROP_REASON_"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_by_name_number_and_pattern() {
        for (wanted, expected) in [
            ("NO_SOCKET", vec![3]),
            ("no-socket", vec![3]),
            ("SKB_DROP_REASON_TCP_CSUM", vec![5]),
            ("6", vec![6]),
            ("no*", vec![2, 3]),
        ] {
            let mut reasons = Reasons::new(wanted);
            reasons.resolve(&Sample).unwrap();
            assert_eq!(reasons.codes().unwrap(), expected, "{wanted}");
        }
    }

    #[test]
    fn unknown_reasons_list_the_nearest() {
        let refused = Reasons::new("NETFILTER_DORP").resolve(&Sample).unwrap_err();
        assert!(refused.contains("NETFILTER_DROP"), "{refused}");
        let refused = Reasons::new("csum").resolve(&Sample).unwrap_err();
        assert!(refused.contains("TCP_CSUM"), "{refused}");
        assert!(Reasons::new("77").resolve(&Sample).is_err());
    }
}
