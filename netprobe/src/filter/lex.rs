//! From the text of an expression to its words and signs.

use std::{ops::Range, sync::Arc};

use super::Error;

/// A word or sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// `(`
    Open,
    /// `)`
    Close,
    /// `!`
    Not,
    /// `&` or `&&`
    And,
    /// `|` or `||`
    Or,
    /// `=`, `!=`, `<` and so on.
    Compare(Compare),
    /// Anything else.
    Word(String),
    /// A word in quotes, which is never a keyword.
    Quoted(String),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Compare {
    /// The comparison that a word stands for.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "eq" => Self::Equal,
            "ne" | "neq" => Self::NotEqual,
            "lt" => Self::Less,
            "le" | "leq" => Self::LessOrEqual,
            "gt" => Self::Greater,
            "ge" | "geq" => Self::GreaterOrEqual,
            _ => return None,
        })
    }
}

/// Signs, longer ones first.
const SIGNS: [(&str, Token); 13] = [
    ("&&", Token::And),
    ("||", Token::Or),
    ("==", Token::Compare(Compare::Equal)),
    ("!=", Token::Compare(Compare::NotEqual)),
    ("<=", Token::Compare(Compare::LessOrEqual)),
    (">=", Token::Compare(Compare::GreaterOrEqual)),
    ("&", Token::And),
    ("|", Token::Or),
    ("=", Token::Compare(Compare::Equal)),
    ("<", Token::Compare(Compare::Less)),
    (">", Token::Compare(Compare::Greater)),
    ("(", Token::Open),
    (")", Token::Close),
];

/// The tokens of `source` and where they stand.
pub(super) fn tokens(source: &Arc<str>) -> Result<Vec<(Token, Range<usize>)>, Error> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = source[at..].chars().next() {
        let rest = &source[at..];
        let (token, length) = if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else if let Some((sign, token)) = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
            (token.clone(), sign.len())
        } else if first == '!' {
            (Token::Not, 1)
        } else if first == '"' || first == '\'' {
            let Some(length) = rest[1..].find(first) else {
                return Err(Error::new(
                    "this quote is not closed",
                    source,
                    at..source.len(),
                ));
            };
            (Token::Quoted(rest[1..=length].to_owned()), length + 2)
        } else {
            let length = rest.find(ends_word).unwrap_or(rest.len());
            (Token::Word(rest[..length].to_owned()), length)
        };
        tokens.push((token, at..at + length));
        at += length;
    }
    Ok(tokens)
}

fn ends_word(character: char) -> bool {
    character.is_whitespace() || "()!=<>&|\"'".contains(character)
}
