//! `/proc/PID/stat`, as proc_pid_stat(5) numbers its fields.

/// A field behind the name, `number` being 3 or more. The name, the second field, may hold anything, also `)`.
pub fn field(stat: &str, number: usize) -> Option<&str> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// What the task does, as in ps(1): `R`, `S`, `D`, `T` …
pub fn state(stat: &str) -> Option<char> {
    field(stat, 3)?.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_behind_the_name() {
        let stat = "77 (a ) R b) T 1 77\n";
        assert_eq!(field(stat, 3), Some("T"));
        assert_eq!(state(stat), Some('T'));
        assert_eq!(field(stat, 5), Some("77"));
        assert_eq!(field(stat, 6), None);
        assert_eq!(field(stat, 2), None);
        assert_eq!(field("77 (cut", 3), None);
    }
}
