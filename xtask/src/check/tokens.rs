//! Splits Rust source into words and punctuation with their lines, without comments and literals.
//!
//! Just enough to see what code names: a rule that looked at text would find words in comments.

/// A word or a character of punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    /// The line, from one.
    pub(super) line: usize,
    /// A word, `::`, or one character.
    pub(super) text: &'a str,
}

/// The tokens of `source`.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = skipped(rest).unwrap_or_else(|| {
            let length = word(rest);
            if !first.is_whitespace() {
                let text = &rest[..length];
                found.push(Token { line, text });
            }
            length
        });
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The length of a comment or literal at the start, if there is one.
fn skipped(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(rest.find("*/").map_or(rest.len(), |at| at + 2));
    }
    raw_string(rest).or_else(|| {
        let quoted = rest.strip_prefix('b').unwrap_or(rest);
        let prefix = rest.len() - quoted.len();
        let body = string(quoted).or_else(|| character(quoted))?;
        Some(prefix + body)
    })
}

/// `r#"…"#` with any number of hashes.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let before = rest.len() - body.len();
    let inside = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(before + inside)
}

fn string(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('"')?;
    Some(1 + until_quote(body, '"').unwrap_or(body.len()))
}

/// A character; what looks like one but is not closed is a lifetime.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    let first = body.chars().next()?;
    let closed = first == '\\' || body[first.len_utf8()..].starts_with('\'');
    closed.then(|| until_quote(body, '\'').map(|end| end + 1))?
}

/// The length up to and with the next quote that no backslash precedes.
fn until_quote(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, letter) in body.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The length of the word, `::` or character at the start.
fn word(rest: &str) -> usize {
    let letters = rest.find(|letter: char| letter != '_' && !letter.is_alphanumeric());
    match letters.unwrap_or(rest.len()) {
        0 if rest.starts_with("::") => 2,
        0 => rest.chars().next().map_or(0, char::len_utf8),
        length => length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source).iter().map(|token| token.text).collect()
    }

    #[test]
    fn words_and_punctuation_are_tokens() {
        assert_eq!(
            texts("use a::{b, c_1};"),
            ["use", "a", "::", "{", "b", ",", "c_1", "}", ";"]
        );
    }

    #[test]
    fn comments_and_literals_are_not() {
        let cases = [
            "a // x\nb",
            "a /* x\n */ b",
            r#"a "x \" x" b"#,
            "a r\"x\\\" b",
            "a r##\"x\"# x\"## b",
            "a b\"x\" b",
            r"a '\'' b",
            "a 'x' b",
            "a b'x' b",
        ];
        for source in cases {
            assert_eq!(texts(source), ["a", "b"], "{source}");
        }
        assert_eq!(texts("&'a str"), ["&", "'", "a", "str"]);
    }

    #[test]
    fn lines_are_counted_through_everything() {
        let lines: Vec<_> = tokens("a\n\"x\n\" b // y\nc")
            .iter()
            .map(|token| (token.line, token.text))
            .collect();
        assert_eq!(lines, [(1, "a"), (3, "b"), (4, "c")]);
    }
}
