//! From text to an [`Expression`]: recursive descent, one function for each line of the grammar.
//!
//! ```text
//! any       = all { ("or" | "|" | "||") all }
//! all       = one { [ "and" | "&" | "&&" ] one }
//! one       = { "not" | "!" } ( "(" any ")" | predicate )
//! predicate = keyword [ comparison ] value
//! ```
//!
//! Depth and length are bounded, so that no input exhausts the stack.

use std::{net::IpAddr, ops::Range, sync::Arc};

use super::{
    Error, Expression, Family, Origin, Pattern, Ports, Predicate, Prefix, Reasons, Side,
    error::suggestion,
    host::{Host, parse_ports},
    lex::{Compare, Token, tokens},
    states,
};
use crate::observe::cgroups::Cgroup;

/// Names that numbers have on this machine.
pub trait Services {
    /// The port of a service, such as `https`.
    fn port(&self, name: &str) -> Option<u16>;
    /// The addresses of a host, such as `localhost`.
    fn hosts(&self, name: &str) -> Vec<IpAddr>;
    /// The inode number of a network namespace, from however people write one.
    fn netns(&self, text: &str) -> Result<u32, String>;
    /// The control group of a path or id.
    fn cgroup(&self, text: &str) -> Result<Cgroup, String>;
}

/// Bytes of an expression.
pub(super) const MAX_LENGTH: usize = 4096;
/// Parentheses within parentheses.
pub(super) const MAX_DEPTH: usize = 64;

const KEYWORDS: [&str; 18] = [
    "src", "dst", "sport", "dport", "port", "state", "exclude", "dev", "iface", "pid", "comm",
    "reason", "netns", "family", "listener", "not", "host", "cgroup",
];
/// What joins and compares; a value of this name is written in quotes.
const RESERVED: [&str; 14] = [
    "and", "or", "not", "eq", "ne", "neq", "lt", "le", "leq", "gt", "ge", "geq", "src", "dst",
];
/// Predicates of ss(8) whose answer events do not carry.
const NOT_KNOWN: [&str; 2] = ["fwmark", "autobound"];

/// The filter that `text` describes.
pub fn parse(text: &str, services: &dyn Services) -> Result<Expression, Error> {
    let source: Arc<str> = Arc::from(text);
    if text.len() > MAX_LENGTH {
        let message = format!(
            "an expression has at most {MAX_LENGTH} characters, not {}",
            text.len()
        );
        return Err(Error::elsewhere(message));
    }
    let tokens = tokens(&source)?;
    let mut parser = Parser {
        source,
        tokens,
        next: 0,
        depth: 0,
        services,
    };
    if parser.tokens.is_empty() {
        return Ok(Expression::ALL);
    }
    let expression = parser.any()?;
    match parser.peek() {
        None => Ok(expression),
        Some(Token::Close) => Err(parser.here("nothing is open that this could close")),
        Some(_) => Err(parser.here("expected `and`, `or` or the end here")),
    }
}

struct Parser<'a> {
    source: Arc<str>,
    tokens: Vec<(Token, Range<usize>)>,
    next: usize,
    depth: usize,
    services: &'a dyn Services,
}

/// A value and where it stands.
struct Value {
    text: String,
    at: Range<usize>,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(token, _)| token)
    }

    /// Whether the next token is the keyword `word`.
    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(text)) if text.eq_ignore_ascii_case(word))
    }

    /// Takes the next token if it is this sign or word.
    fn take(&mut self, sign: &Token, word: &str) -> bool {
        let is_it = self.peek() == Some(sign) || self.is_word(word);
        self.next += usize::from(is_it);
        is_it
    }

    /// Where the next token stands; at the end: after the last.
    fn place(&self) -> Range<usize> {
        match self.tokens.get(self.next) {
            Some((_, at)) => at.clone(),
            None => self.source.len()..self.source.len(),
        }
    }

    fn here(&self, message: impl Into<String>) -> Error {
        self.at(self.place(), message)
    }

    fn at(&self, at: Range<usize>, message: impl Into<String>) -> Error {
        Error::new(message, &self.source, at)
    }

    fn any(&mut self) -> Result<Expression, Error> {
        let mut parts = vec![self.all()?];
        while self.take(&Token::Or, "or") {
            parts.push(self.all()?);
        }
        Ok(Expression::any(parts))
    }

    fn all(&mut self) -> Result<Expression, Error> {
        let mut parts = vec![self.one()?];
        loop {
            let is_joined = self.take(&Token::And, "and");
            let goes_on = match self.peek() {
                Some(Token::Open | Token::Not) => true,
                Some(Token::Word(_)) => !self.is_word("or"),
                _ => false,
            };
            if !is_joined && !goes_on {
                return Ok(Expression::all(parts));
            }
            parts.push(self.one()?);
        }
    }

    fn one(&mut self) -> Result<Expression, Error> {
        let mut is_negated = false;
        while self.take(&Token::Not, "not") {
            is_negated = !is_negated;
        }
        let part = if self.peek() == Some(&Token::Open) {
            self.parenthesis()?
        } else {
            self.predicate()?
        };
        Ok(if is_negated { part.negate() } else { part })
    }

    fn parenthesis(&mut self) -> Result<Expression, Error> {
        let open = self.place();
        if self.depth == MAX_DEPTH {
            return Err(self.here(format!("parentheses go at most {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        self.next += 1;
        let inner = self.any()?;
        self.depth -= 1;
        match self.peek() {
            Some(Token::Close) => {
                self.next += 1;
                Ok(inner)
            }
            Some(_) => Err(self.here("expected `and`, `or` or `)` here")),
            None => Err(self.at(open, "this parenthesis is not closed")),
        }
    }

    fn predicate(&mut self) -> Result<Expression, Error> {
        let start = self.place();
        let Some(Token::Word(word)) = self.peek() else {
            let what = match self.peek() {
                None => "the expression ends where a test should follow".to_owned(),
                Some(_) => format!("expected a test here, such as `{}`", "dport = :443"),
            };
            return Err(self.here(what));
        };
        let word = word.to_lowercase();
        self.next += 1;
        match word.as_str() {
            "src" | "saddr" => self.host(Side::Source, start),
            "dst" | "daddr" => self.host(Side::Destination, start),
            "host" => self.host(Side::Either, start),
            "listener" => self.host(Side::Listener, start),
            "sport" => self.port(Side::Source, start),
            "dport" => self.port(Side::Destination, start),
            "port" => self.port(Side::Either, start),
            "state" | "exclude" | "excl" => self.states(&word, start),
            "dev" | "iface" => self.named(start, "an interface", Self::interface),
            "pid" => self.named(start, "a process id", Self::pid),
            "comm" => self.named(start, "the name of a process", |_, value| {
                Ok(Predicate::Comm(Pattern::of_task(&value.text)))
            }),
            "reason" => self.named(start, "a reason", |_, value| {
                Ok(Predicate::Reason(Reasons::new(value.text)))
            }),
            "netns" => self.named(start, "a network namespace", Self::netns),
            "cgroup" => self.named(start, "a control group", Self::cgroup),
            "family" => self.family(&start),
            "and" | "or" => Err(self.at(start, format!("a test is missing before this `{word}`"))),
            _ => Err(self.unknown(&word, start)),
        }
    }

    fn unknown(&self, word: &str, at: Range<usize>) -> Error {
        if NOT_KNOWN.contains(&word) {
            return self.at(at, format!("`{word}` is known to ss, but not to events"));
        }
        let known = [&KEYWORDS[..], &["and", "or"]].concat();
        let near = suggestion(word, &known);
        if near.is_empty() {
            let known = KEYWORDS.join(", ");
            return self.at(at, format!("`{word}` is no test; there are {known}"));
        }
        self.at(at, format!("`{word}` is no test{near}"))
    }

    /// The comparison that comes next; equality if there is none.
    fn compare(&mut self) -> Compare {
        let compare = match self.peek() {
            Some(Token::Compare(compare)) => Some(*compare),
            Some(Token::Word(word)) => Compare::of_word(&word.to_lowercase()),
            _ => None,
        };
        self.next += usize::from(compare.is_some());
        compare.unwrap_or(Compare::Equal)
    }

    /// As [`Self::compare`], where nothing is more or less.
    fn equality(&mut self, what: &str) -> Result<bool, Error> {
        let at = self.place();
        match self.compare() {
            Compare::Equal => Ok(true),
            Compare::NotEqual => Ok(false),
            _ => Err(self.at(at, format!("only = and != compare {what}"))),
        }
    }

    fn value(&mut self, what: &str) -> Result<Value, Error> {
        let at = self.place();
        let text = match self.peek() {
            Some(Token::Quoted(text)) => text.clone(),
            Some(Token::Word(word)) if !RESERVED.contains(&word.as_str()) => word.clone(),
            Some(Token::Word(word)) => {
                let message = format!("expected {what}; write '{word}' if that is its name");
                return Err(self.here(message));
            }
            Some(_) => return Err(self.here(format!("expected {what} here"))),
            None => {
                return Err(self.here(format!("the expression ends where {what} should follow")));
            }
        };
        self.next += 1;
        Ok(Value { text, at })
    }

    fn test(&self, predicate: Predicate, start: &Range<usize>) -> Expression {
        let end = self.tokens[self.next - 1].1.end;
        let place = start.start..end;
        let words = self
            .source
            .get(place.clone())
            .unwrap_or_default()
            .to_owned();
        let origin = Origin {
            words,
            place: Some((Arc::clone(&self.source), place)),
        };
        Expression::test(predicate, origin)
    }

    /// A predicate of one word, which is equal or not.
    fn named(
        &mut self,
        start: Range<usize>,
        what: &str,
        read: impl Fn(&Self, Value) -> Result<Predicate, Error>,
    ) -> Result<Expression, Error> {
        let is_equal = self.equality("these")?;
        let value = self.value(what)?;
        let predicate = read(self, value)?;
        let test = self.test(predicate, &start);
        Ok(if is_equal { test } else { test.negate() })
    }

    fn interface(&self, value: Value) -> Result<Predicate, Error> {
        if value.text.is_empty() || value.text.len() > 15 {
            return Err(self.at(value.at, "the name of an interface has 1 to 15 characters"));
        }
        if let Ok(index) = value.text.parse() {
            if index == 0 {
                return Err(self.at(value.at, "interfaces are numbered from 1"));
            }
            return Ok(Predicate::Ifindex(index));
        }
        Ok(Predicate::Iface(Pattern::new(value.text)))
    }

    fn pid(&self, value: Value) -> Result<Predicate, Error> {
        match value.text.parse() {
            Ok(0) | Err(_) => Err(self.at(value.at, "a process id is a number from 1 on")),
            Ok(pid) => Ok(Predicate::Pid(pid)),
        }
    }

    fn netns(&self, value: Value) -> Result<Predicate, Error> {
        let inode = self.services.netns(&value.text);
        inode
            .map(Predicate::Netns)
            .map_err(|why| self.at(value.at, why))
    }

    fn cgroup(&self, value: Value) -> Result<Predicate, Error> {
        let group = self.services.cgroup(&value.text);
        group
            .map(Predicate::Cgroup)
            .map_err(|why| self.at(value.at, why))
    }

    fn family(&mut self, start: &Range<usize>) -> Result<Expression, Error> {
        let is_equal = self.equality("families")?;
        let value = self.value("inet or inet6")?;
        let mut predicates = Vec::new();
        match value.text.to_lowercase().as_str() {
            "inet" | "ipv4" | "4" => predicates.push(Predicate::Family(Family::V4)),
            "inet6" | "ipv6" | "6" => predicates.push(Predicate::Family(Family::V6)),
            // As events call it: IPv4 on an IPv6 socket.
            "ipv4-mapped" => {
                predicates.push(Predicate::Family(Family::V6));
                let mapped = Prefix::MAPPED;
                predicates.push(Predicate::Address(Side::Destination, vec![mapped]));
            }
            other => {
                let near = suggestion(other, &["inet", "inet6", "ipv4", "ipv6", "ipv4-mapped"]);
                return Err(self.at(
                    value.at,
                    format!("a family is inet, inet6 or ipv4-mapped{near}"),
                ));
            }
        }
        let tests = predicates
            .into_iter()
            .map(|predicate| self.test(predicate, start));
        let all = Expression::all(tests);
        Ok(if is_equal { all } else { all.negate() })
    }

    /// A run of `state` and `exclude`, which together describe one set, as in ss(8).
    fn states(&mut self, first: &str, start: Range<usize>) -> Result<Expression, Error> {
        let mut set = None;
        let mut word = first.to_owned();
        loop {
            let is_equal = self.equality("states")?;
            let value = self.value("a TCP state")?;
            let Some(states) = states::of_name(&value.text) else {
                let near = suggestion(&value.text, &states::names());
                let message = format!("`{}` is no TCP state{near}", value.text);
                return Err(self.at(value.at, message));
            };
            let is_wanted = (word == "state") == is_equal;
            set = Some(match (set, is_wanted) {
                (None, true) => states,
                (Some(set), true) => set | states,
                (None, false) => states::ALL & !states,
                (Some(set), false) => set & !states,
            });
            let Some(Token::Word(next)) = self.peek() else {
                break;
            };
            word = next.to_lowercase();
            if !["state", "exclude", "excl"].contains(&word.as_str()) {
                break;
            }
            self.next += 1;
        }
        Ok(self.test(Predicate::State(set.unwrap_or(states::ALL)), &start))
    }

    fn port(&mut self, side: Side, start: Range<usize>) -> Result<Expression, Error> {
        let compare = self.compare();
        let value = self.value("a port")?;
        let text = value
            .text
            .strip_prefix('*')
            .filter(|rest| rest.starts_with(':'));
        let text = text.unwrap_or(&value.text);
        let ports =
            parse_ports(text, self.services).map_err(|why| self.at(value.at.clone(), why))?;
        let ports = compared(compare, &ports).map_err(|why| self.at(value.at.clone(), why))?;
        if ports.is_all() {
            return Ok(self.test(Predicate::Any, &start));
        }
        if ports.is_empty() {
            return Err(self.at(start.start..value.at.end, "no port is like this"));
        }
        // `port != 80`: neither end has it, like every other negation.
        if side == Side::Either && compare == Compare::NotEqual {
            let excluded = Predicate::Port(side, ports.complement());
            return Ok(self.test(excluded, &start).negate());
        }
        Ok(self.test(Predicate::Port(side, ports), &start))
    }

    fn host(&mut self, side: Side, start: Range<usize>) -> Result<Expression, Error> {
        let is_equal = self.equality("addresses")?;
        let value = self.value("an address")?;
        let host = Host::parse(&value.text, self.services).map_err(|(why, at)| {
            self.at(value.at.start + at.start..value.at.start + at.end, why)
        })?;
        let mut parts = Vec::new();
        match side {
            // One end has both the address and the port.
            Side::Either if !host.prefixes.is_empty() && host.ports.is_some() => {
                let ends = [Side::Source, Side::Destination]
                    .map(|side| Expression::all(self.host_tests(&host, side, &start)));
                parts.push(Expression::any(ends));
            }
            _ => parts = self.host_tests(&host, side, &start),
        }
        if parts.is_empty() {
            parts.push(self.test(Predicate::Any, &start));
        }
        let all = Expression::all(parts);
        Ok(if is_equal { all } else { all.negate() })
    }

    fn host_tests(&self, host: &Host, side: Side, start: &Range<usize>) -> Vec<Expression> {
        let prefixes = Some(host.prefixes.clone()).filter(|prefixes| !prefixes.is_empty());
        let prefix = prefixes.map(|prefixes| Predicate::Address(side, prefixes));
        let ports = host.ports.clone().map(|ports| Predicate::Port(side, ports));
        let family = host.family.map(Predicate::Family);
        let tests = prefix.into_iter().chain(ports).chain(family);
        tests.map(|predicate| self.test(predicate, start)).collect()
    }
}

/// The ports that compare like this with `ports`.
fn compared(compare: Compare, ports: &Ports) -> Result<Ports, String> {
    let one = match *ports.ranges() {
        [(low, high)] if low == high => Some(low),
        _ => None,
    };
    let single = one.ok_or_else(|| "only = and != compare ranges".to_owned());
    let below = |port: u16| match port.checked_sub(1) {
        Some(last) => Ports::range(0, last),
        None => Ports::all().complement(),
    };
    Ok(match compare {
        Compare::Equal => ports.clone(),
        Compare::NotEqual => ports.complement(),
        Compare::Less => below(single?),
        Compare::GreaterOrEqual => below(single?).complement(),
        Compare::LessOrEqual => Ports::range(0, single?),
        Compare::Greater => Ports::range(0, single?).complement(),
    })
}
