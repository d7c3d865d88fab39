//! Events as rows: what the columns of each kind are, and how tables show them.

use super::Value;

/// How a column is aligned in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// What the values of a column are, beside unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A whole number.
    Number,
    /// Text.
    Text,
    /// Names of functions.
    Stack,
}

/// When a table shows a column; other formats always have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Always.
    Always,
    /// On wide terminals.
    Wide,
    /// Only where asked for.
    Never,
}

/// A column of a kind of event: its name everywhere, and how a table shows it.
#[derive(Debug)]
pub struct Column {
    /// Its key in JSON and CSV, with the unit (`latency_ns`).
    pub name: &'static str,
    /// Its heading in a table.
    pub title: &'static str,
    /// What it says.
    pub about: &'static str,
    /// Its width in a table.
    pub width: usize,
    /// Its alignment in a table.
    pub align: Align,
    /// When a table shows it.
    pub shown: Shown,
}

impl Column {
    /// A text column that tables always show.
    pub const fn text(
        name: &'static str,
        title: &'static str,
        width: usize,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            title,
            about,
            width,
            align: Align::Left,
            shown: Shown::Always,
        }
    }

    /// A number column that tables always show.
    pub const fn number(
        name: &'static str,
        title: &'static str,
        width: usize,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            title,
            about,
            width,
            align: Align::Right,
            shown: Shown::Always,
        }
    }

    /// What its values are.
    pub fn kind(&self) -> Type {
        match self.align {
            Align::Right => Type::Number,
            Align::Left if self.name == "stack" => Type::Stack,
            Align::Left => Type::Text,
        }
    }

    /// Whether its values are addresses.
    pub fn is_address(&self) -> bool {
        matches!(self.name, "saddr" | "daddr" | "listener")
    }

    /// The same, only on wide terminals.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self {
            shown: Shown::Wide,
            ..self
        }
    }

    /// The same, never in a table unless asked for.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self {
            shown: Shown::Never,
            ..self
        }
    }
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// When, in nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// The same, in nanoseconds of the monotonic clock; 0 where that is not known.
    pub monotonic_ns: u64,
    /// The kind's name.
    pub kind: &'static str,
    /// One value per column of the kind.
    pub values: Vec<Value>,
    /// The headers of the packet, from its IP header on, where they were asked for.
    pub packet: Vec<u8>,
}

/// The columns of a kind, for renderers.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The kind's name.
    pub kind: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
}
