//! What is wrong with an expression, and where.

use std::{fmt, ops::Range, sync::Arc};

use super::Test;

/// A mistake in a filter: one line, and where there is a place to point at, two more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong, and what to write instead.
    pub message: String,
    /// The expression, and the place in it in bytes.
    pub place: Option<(Arc<str>, Range<usize>)>,
}

/// As much of a long expression is shown to each side of the mistake.
const CONTEXT: usize = 60;

impl Error {
    /// A mistake in `source` at `at`.
    pub(super) fn new(message: impl Into<String>, source: &Arc<str>, at: Range<usize>) -> Self {
        Self {
            message: message.into(),
            place: Some((Arc::clone(source), at)),
        }
    }

    /// A mistake in one test.
    pub fn of(test: &Test, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            message: match &test.origin.place {
                Some(_) => message,
                None => format!("{}: {message}", test.origin),
            },
            place: test.origin.place.clone(),
        }
    }

    /// A mistake outside an expression.
    pub fn elsewhere(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            place: None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&visible(&self.message))?;
        let Some((source, at)) = &self.place else {
            return Ok(());
        };
        let position = |byte: usize| {
            let starts = source.char_indices().map(|(index, _)| index);
            starts.take_while(|index| *index < byte).count()
        };
        let (start, end) = (position(at.start), position(at.end));
        let first = start.saturating_sub(CONTEXT);
        let width = (end.max(start + 1) - start).min(CONTEXT);
        let shown: String = source
            .chars()
            .skip(first)
            .take(start - first + CONTEXT + width)
            .collect();
        let dots = if first > 0 { "…" } else { "" };
        writeln!(f, "\n  {dots}{}", visible(&shown))?;
        let indent = start - first + dots.chars().count();
        write!(f, "  {:indent$}{}", "", "^".repeat(width))
    }
}

impl std::error::Error for Error {}

/// One column for every character, whatever was typed.
fn visible(text: &str) -> String {
    text.chars()
        .map(|character| match character {
            '\t' => ' ',
            character if character.is_control() => '?',
            character => character,
        })
        .collect()
}

/// `, did you mean X?` for the nearest of `known`, if one is near.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()).first() {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    }
}

/// Those of `known` that differ from `word` in a few letters, nearest first.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let word = word.to_lowercase();
    let limit = (word.chars().count() / 3).clamp(1, 4);
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .map(|known| (distance(&word, &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= limit && *distance < known.len())
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().map(|(_, known)| known).collect()
}

/// Letters to change, insert, remove or swap to get from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous = None;
    for (row, letter) in from.chars().take(64).enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in to.iter().enumerate() {
            let change = last[column] + usize::from(letter != *other);
            let mut cost = change.min(last[column + 1] + 1).min(current[column] + 1);
            if column > 0 && previous == Some(*other) && letter == to[column - 1] {
                cost = cost.min(before_last[column - 1] + 1);
            }
            current.push(cost);
        }
        before_last = std::mem::replace(&mut last, current);
        previous = Some(letter);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found() {
        let known = ["established", "sport", "dport", "src"];
        assert_eq!(nearest("establishd", known), ["established"]);
        assert_eq!(nearest("sprot", known), ["sport"]);
        assert_eq!(nearest("DPORT", known)[0], "dport");
        assert!(nearest("zebra", known).is_empty());
        assert!(nearest("", known).is_empty());
    }

    #[test]
    fn the_caret_stands_below_the_character() {
        let source: Arc<str> = Arc::from("é\tdport = 70000");
        let error = Error::new("too large", &source, 11..16);
        assert_eq!(
            error.to_string(),
            "too large\n  é dport = 70000\n            ^^^^^"
        );
        let long: Arc<str> = Arc::from("x".repeat(300) + "y" + &"z".repeat(300));
        let shown = Error::new("here", &long, 300..301).to_string();
        let [_, text, caret] = shown.lines().collect::<Vec<_>>()[..] else {
            panic!("{shown}");
        };
        let column = caret.chars().position(|c| c == '^');
        assert_eq!(column, text.chars().position(|c| c == 'y'));
    }
}
