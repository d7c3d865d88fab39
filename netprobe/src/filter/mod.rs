//! Which events are wanted: the expressions of `--filter`, in the grammar of ss(8).
//!
//! - [`parse`](fn@parse): from text to an [`Expression`], or an [`Error`] that points into it;
//! - [`contradiction`]: expressions that nothing can satisfy are mistakes;
//! - [`pushdown`]: the part that the programs in the kernel test, and the rest;
//! - [`matcher`]: the rest, on rows.
//!
//! The other filter options become expressions too, so that there is one meaning of everything.
//! A test of a value that is unknown fails, and its negation holds.

use std::{fmt, ops::Range, sync::Arc};

use crate::observe::cgroups::Cgroup;

mod error;
mod host;
mod lex;
mod parse;
mod pattern;
mod ports;
mod prefix;
mod reasons;
mod states;

pub mod contradiction;
pub mod matcher;
pub mod pushdown;

#[cfg(test)]
mod equivalence;
#[cfg(test)]
mod expressions;

pub use error::Error;
pub use host::parse_ports;
pub use parse::{Services, parse};
pub use pattern::Pattern;
pub use ports::Ports;
pub use prefix::{Family, Prefix};
pub use reasons::{KnownReasons, Reasons};

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the record's source is.
    Source,
    /// Where its destination is.
    Destination,
    /// Any of both.
    Either,
    /// The socket that refused it.
    Listener,
}

/// What can be asked of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Predicate {
    /// Always true (`src *`).
    Any,
    /// Whether an address is in one of these.
    Address(Side, Vec<Prefix>),
    /// Whether a port is one of these.
    Port(Side, Ports),
    /// Address family of the socket or packet.
    Family(Family),
    /// TCP state of the socket, one bit each; see [`states`].
    State(u32),
    /// Name of the interface.
    Iface(Pattern),
    /// Index of the interface.
    Ifindex(u32),
    /// Process that owns the socket.
    Pid(u32),
    /// Name of that process.
    Comm(Pattern),
    /// Why a packet was dropped.
    Reason(Reasons),
    /// Inode number of the network namespace.
    Netns(u32),
    /// Control group of the socket, or one above it.
    Cgroup(Cgroup),
}

/// Where a test was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The words themselves.
    pub words: String,
    /// The whole expression and the place in it; none for other options.
    pub place: Option<(Arc<str>, Range<usize>)>,
}

impl Origin {
    /// An option of the command line, as it was written.
    pub const fn option(words: String) -> Self {
        Self { words, place: None }
    }
}

/// A predicate, or its opposite.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// What is asked.
    pub predicate: Predicate,
    /// Whether the answer must be no.
    pub is_negated: bool,
    /// Where it was written.
    pub origin: Origin,
}

/// A filter. Negations are down at the tests.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// One test.
    Test(Test),
    /// All must hold; of none: always true.
    And(Vec<Self>),
    /// One must hold.
    Or(Vec<Self>),
}

impl Expression {
    /// Wants everything.
    pub const ALL: Self = Self::And(Vec::new());

    /// One test.
    pub const fn test(predicate: Predicate, origin: Origin) -> Self {
        Self::Test(Test {
            predicate,
            is_negated: false,
            origin,
        })
    }

    /// All of these.
    pub fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for part in parts {
            match part {
                Self::And(inner) => flat.extend(inner),
                Self::Test(_) | Self::Or(_) => flat.push(part),
            }
        }
        match flat.len() {
            1 => flat.remove(0),
            _ => Self::And(flat),
        }
    }

    /// One of these; tests of the same thing become one.
    pub fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut flat: Vec<Self> = Vec::new();
        for part in parts {
            let inner = match part {
                Self::Or(inner) => inner,
                Self::Test(_) | Self::And(_) => vec![part],
            };
            for part in inner {
                add_alternative(&mut flat, part);
            }
        }
        match flat.len() {
            1 => flat.remove(0),
            _ => Self::Or(flat),
        }
    }

    /// The opposite.
    #[must_use]
    pub fn negate(self) -> Self {
        match self {
            Self::Test(test) => test.negate(),
            Self::And(parts) => Self::any(parts.into_iter().map(Self::negate)),
            Self::Or(parts) => Self::all(parts.into_iter().map(Self::negate)),
        }
    }

    /// The parts that must all hold.
    pub fn conjuncts(&self) -> &[Self] {
        match self {
            Self::And(parts) => parts,
            Self::Test(_) | Self::Or(_) => std::slice::from_ref(self),
        }
    }

    /// Calls `visit` with every test.
    pub fn each<E>(&self, visit: &mut impl FnMut(&Test) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Test(test) => visit(test),
            Self::And(parts) | Self::Or(parts) => {
                parts.iter().try_for_each(|part| part.each(visit))
            }
        }
    }

    /// Calls `visit` with every test, to change it.
    pub fn each_mut<E>(
        &mut self,
        visit: &mut impl FnMut(&mut Test) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Self::Test(test) => visit(test),
            Self::And(parts) | Self::Or(parts) => {
                parts.iter_mut().try_for_each(|part| part.each_mut(visit))
            }
        }
    }
}

/// Adds `part` to alternatives, joined with one that it can be joined with.
fn add_alternative(alternatives: &mut Vec<Expression>, part: Expression) {
    if let Expression::Test(test) = &part {
        for other in alternatives.iter_mut() {
            if let Expression::Test(other) = other
                && let Some(joined) = other.or(test)
            {
                *other = joined;
                return;
            }
        }
    }
    alternatives.push(part);
}

impl Test {
    fn negate(self) -> Expression {
        let of = |predicate, is_negated| {
            Expression::Test(Self {
                predicate,
                is_negated,
                origin: self.origin.clone(),
            })
        };
        match self.predicate {
            // Neither of both.
            Predicate::Port(Side::Either, ports) => {
                let rest = ports.complement();
                Expression::all(
                    [Side::Source, Side::Destination]
                        .map(|side| of(Predicate::Port(side, rest.clone()), false)),
                )
            }
            Predicate::Address(Side::Either, prefixes) => Expression::all(
                [Side::Source, Side::Destination]
                    .map(|side| of(Predicate::Address(side, prefixes.clone()), !self.is_negated)),
            ),
            Predicate::Port(side, ports) => of(Predicate::Port(side, ports.complement()), false),
            Predicate::State(states) => of(Predicate::State(states::ALL & !states), false),
            predicate => of(predicate, !self.is_negated),
        }
    }

    /// One test that means "this or that", if there is one.
    fn or(&self, other: &Self) -> Option<Self> {
        if self.is_negated || other.is_negated {
            return None;
        }
        let predicate = match (&self.predicate, &other.predicate) {
            (Predicate::Port(a, left), Predicate::Port(b, right)) if a == b => {
                Predicate::Port(*a, left.union(right))
            }
            (Predicate::Port(a, left), Predicate::Port(b, right))
                if left == right && are_both_ends(*a, *b) =>
            {
                Predicate::Port(Side::Either, left.clone())
            }
            (Predicate::Address(a, left), Predicate::Address(b, right)) if a == b => {
                Predicate::Address(*a, [&left[..], right].concat())
            }
            (Predicate::Address(a, left), Predicate::Address(b, right))
                if left == right && are_both_ends(*a, *b) =>
            {
                Predicate::Address(Side::Either, left.clone())
            }
            (Predicate::State(left), Predicate::State(right)) => Predicate::State(left | right),
            (Predicate::Reason(left), Predicate::Reason(right)) => {
                Predicate::Reason(left.union(right))
            }
            _ => return None,
        };
        Some(Self {
            predicate,
            is_negated: false,
            origin: self.origin.or(&other.origin),
        })
    }

    /// The column whose value it needs, for each end that it tests.
    pub const fn columns(&self) -> &'static [&'static str] {
        match &self.predicate {
            Predicate::Any => &[],
            Predicate::Address(side, _) => match side {
                Side::Source => &["saddr"],
                Side::Destination => &["daddr"],
                Side::Either => &["saddr", "daddr"],
                Side::Listener => &["listener"],
            },
            Predicate::Port(side, _) => match side {
                Side::Source => &["sport"],
                Side::Destination => &["dport"],
                Side::Either => &["sport", "dport"],
                Side::Listener => &["listener_port"],
            },
            Predicate::Family(_) => &["family"],
            Predicate::State(_) => &["state"],
            Predicate::Iface(_) => &["iface"],
            Predicate::Ifindex(_) => &["ifindex"],
            Predicate::Pid(_) => &["pid"],
            Predicate::Comm(_) => &["comm"],
            Predicate::Reason(_) => &["reason"],
            Predicate::Netns(_) => &["netns"],
            Predicate::Cgroup(_) => &["cgroup"],
        }
    }
}

fn are_both_ends(a: Side, b: Side) -> bool {
    matches!(
        (a, b),
        (Side::Source, Side::Destination) | (Side::Destination, Side::Source)
    )
}

impl Origin {
    /// From the begin of the first to the end of the second.
    fn or(&self, other: &Self) -> Self {
        let place = match (&self.place, &other.place) {
            (Some((source, a)), Some((_, b))) => {
                let place = a.start.min(b.start)..a.end.max(b.end);
                Some((Arc::clone(source), place))
            }
            _ => None,
        };
        let words = place
            .as_ref()
            .and_then(|(source, place)| source.get(place.clone()));
        Self {
            words: match words {
                Some(words) => words.to_owned(),
                None => format!("{} or {}", self.words, other.words),
            },
            place,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// Refuses tests of what the events of `kind` do not have.
pub fn check_columns(
    expression: &Expression,
    kind: &str,
    has: impl Fn(&str) -> bool,
) -> Result<(), Error> {
    expression.each(&mut |test| {
        let Some(missing) = test.columns().iter().find(|column| !has(column)) else {
            return Ok(());
        };
        let what = missing.replace('_', " ");
        Err(Error::of(test, format!("`{kind}` events have no {what}")))
    })
}
