//! What of the output of tests is shown: not what passed, which would bury what did not.

/// Takes the lines of a test program one by one.
#[derive(Debug, Default)]
pub(super) struct Shown {
    is_of_success: bool,
}

impl Shown {
    /// Whether the next line is worth showing: all but the names and the output of tests that passed.
    pub(super) fn next(&mut self, line: &str) -> bool {
        let ends = line == "failures:" || line.starts_with("test result: ");
        self.is_of_success = line == "successes:" || self.is_of_success && !ends;
        let passed = line.starts_with("test ") && line.ends_with(" ... ok");
        !self.is_of_success && !passed && !line.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_is_left_out_and_nothing_else() {
        const OUTPUT: &str = "\
running 3 tests
test a ... ok
test b ... FAILED
test c ... ignored, takes an hour

successes:

---- a stdout ----
nothing failed

successes:
    a

failures:

---- b stdout ----
panicked

failures:
    b

test result: FAILED. 1 passed; 1 failed; 1 ignored";
        let mut shown = Shown::default();
        let lines = OUTPUT.lines().filter(|line| shown.next(line));
        let expected = [
            "running 3 tests",
            "test b ... FAILED",
            "test c ... ignored, takes an hour",
            "failures:",
            "---- b stdout ----",
            "panicked",
            "failures:",
            "    b",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored",
        ];
        assert_eq!(lines.collect::<Vec<_>>(), expected);
    }
}
