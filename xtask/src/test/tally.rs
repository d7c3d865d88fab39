//! Counts what Rust's test harness says it did.
//!
//! A test that cannot run here prints `SKIP` and why, and ends well; it is counted as skipped and not
//! as passed, once, however many such lines it prints.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

/// More that fail do not fail by chance.
const MOST_REPEATED: usize = 5;

/// How many tests did what.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    /// The names of those that failed.
    pub(super) failures: Vec<String>,
    /// The names of those that failed, but not when they were run again.
    pub(super) unsteady: Vec<String>,
    /// Why tests were skipped.
    pub(super) reasons: BTreeSet<String>,
}

impl Tally {
    /// One thing that passed.
    pub(super) fn pass() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    /// One thing that failed, by name.
    pub(super) fn failure(name: impl Into<String>) -> Self {
        Self {
            failed: 1,
            failures: vec![name.into()],
            ..Self::default()
        }
    }

    /// One thing that was skipped, and why.
    pub(super) fn skip(reason: impl Into<String>) -> Self {
        Self {
            skipped: 1,
            reasons: BTreeSet::from([reason.into()]),
            ..Self::default()
        }
    }

    /// Reads the output of test programs that were run with `--show-output`.
    pub(super) fn read(output: &str) -> Self {
        let mut tally = Self::default();
        let mut skipped = BTreeSet::new();
        let mut test = "";
        for line in output.lines() {
            if let Some(rest) = line.strip_prefix("test result: ") {
                tally.passed += count(rest, "passed");
                tally.failed += count(rest, "failed");
                tally.skipped += count(rest, "ignored") + skipped.len();
                tally.passed = tally.passed.saturating_sub(skipped.len());
                skipped.clear();
                test = "";
            } else if let Some(name) = section(line) {
                test = name;
            } else if let Some(reason) = line.strip_prefix("SKIP ") {
                tally.reasons.insert(reason.to_owned());
                skipped.insert(test);
            } else if let Some((_test, reason)) = line.split_once(" ... ignored, ") {
                tally.reasons.insert(reason.to_owned());
            } else if let Some(name) = failed(line) {
                tally.failures.push(name.to_owned());
            }
        }
        tally
    }

    /// Whether nothing failed.
    pub(super) fn is_good(&self) -> bool {
        self.failed == 0
    }

    /// The tests that failed, if they are few and all are known by name. The machines that run the tests are shared, and
    /// some of their kernels do not fire all tracepoints (`tracepoints::`): what fails once for that passes alone.
    pub(super) fn worth_repeating(&self) -> Option<&[String]> {
        let are_few = (1..=MOST_REPEATED).contains(&self.failed);
        (are_few && self.failures.len() == self.failed).then_some(&self.failures)
    }

    /// The same after those that failed were run `again`; what passed then is named nonetheless.
    pub(super) fn repeated(mut self, again: Self) -> Self {
        // A program that died has no counts.
        if again.passed + again.failed + again.skipped != self.failed {
            return self;
        }
        let (failed, passed) = self
            .failures
            .into_iter()
            .partition(|test| again.failures.contains(test));
        self.failures = failed;
        self.unsteady = passed;
        self.passed += again.passed;
        self.failed = again.failed;
        self.skipped += again.skipped;
        self.reasons.extend(again.reasons);
        self
    }

    /// The same, with `prefix` before each name and reason.
    pub(super) fn of(mut self, prefix: &str) -> Self {
        let named = |text: &String| format!("{prefix}: {text}");
        self.failures = self.failures.iter().map(named).collect();
        self.unsteady = self.unsteady.iter().map(named).collect();
        self.reasons = self.reasons.iter().map(named).collect();
        self
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.unsteady.extend(other.unsteady);
        self.reasons.extend(other.reasons);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            ..
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The number before a word in `ok. 3 passed; 0 failed; …`.
fn count(text: &str, word: &str) -> usize {
    let parts = text.split([';', '.']);
    let number = parts
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok());
    number.unwrap_or(0)
}

/// The test whose output follows a line `---- NAME stdout ----`.
fn section(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// The test that `test NAME ... FAILED` is about.
fn failed(line: &str) -> Option<&str> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.trim_end_matches(" - should panic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 4 tests
test drops::a ... ok
test drops::b ... ok
test drops::c ... FAILED
test drops::d ... ignored, takes an hour

successes:

---- drops::b stdout ----
SKIP no kprobes
SKIP no kprobes here either

successes:
    drops::a
    drops::b

failures:

---- drops::c stdout ----
thread panicked

failures:
    drops::c

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 1 test
test e ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn counts_are_summed_over_programs() {
        let tally = Tally::read(OUTPUT);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 2 skipped");
        assert_eq!(tally.failures, ["drops::c"]);
        assert_eq!(tally.reasons.len(), 3);
    }

    #[test]
    fn a_program_that_died_has_no_counts() {
        assert_eq!(Tally::read("running 4 tests\ntest a ... ok\n").passed, 0);
    }

    #[test]
    fn what_passes_when_run_again_has_not_failed_but_is_named() {
        let mut first = Tally::failure("a");
        first += Tally::failure("b");
        first += Tally::pass();
        assert_eq!(first.worth_repeating().map(<[_]>::len), Some(2));
        let mut again = Tally::pass();
        again += Tally::failure("b");
        let tally = first.clone().repeated(again);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["b"]);
        assert_eq!(tally.unsteady, ["a"]);
        // It died.
        assert_eq!(first.clone().repeated(Tally::default()), first);
    }

    #[test]
    fn only_a_few_failures_with_names_are_run_again() {
        assert_eq!(Tally::pass().worth_repeating(), None);
        let mut many = Tally::default();
        for name in ["a", "b", "c", "d", "e", "f"] {
            many += Tally::failure(name);
        }
        assert_eq!(many.worth_repeating(), None);
        let unnamed = Tally {
            failed: 1,
            ..Tally::default()
        };
        assert_eq!(unnamed.worth_repeating(), None);
    }

    #[test]
    fn tallies_add_up() {
        let mut sum = Tally::pass();
        sum += Tally::failure("a").of("6.12");
        sum += Tally::skip("no root");
        assert_eq!(sum.to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(sum.failures, ["6.12: a"]);
        assert!(!sum.is_good());
    }
}
